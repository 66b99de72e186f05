"""Whatever runs the network gives the reference's numbers, row by row, in any batch."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from headstart.common.errors import ParamsError
from headstart.encoders import runtimes
from headstart.encoders.frozen import FrozenModel
from headstart.encoders.runtimes import HalvingForward, Run, open_forward, resolve
from headstart.params.extract import ExtractParams
from tests.features.samples import SIZE_PX, extractor, pixels

# (runtime, precision, least cosine similarity of a row to the reference)
OTHERS = [
    ("onnxruntime", "float32", 1 - 1e-6),
    ("openvino", "float32", 1 - 1e-6),
    ("openvino", "bfloat16", 0.99),
    ("keras", "bfloat16", 0.99),
]


def images(n_images: int = 9) -> NDArray[np.uint8]:
    return np.stack([pixels(number, SIZE_PX, SIZE_PX) for number in range(n_images)])


@pytest.fixture(scope="module")
def frozen(exported: Path) -> FrozenModel:
    return extractor(exported).frozen()


@pytest.fixture(scope="module")
def reference(frozen: FrozenModel) -> NDArray[np.float32]:
    return open_forward(frozen, "keras", "float32", cores=1)(images())


@pytest.mark.parametrize(("runtime", "precision", "least"), OTHERS)
def test_it_agrees_with_the_reference(
    frozen: FrozenModel, reference: NDArray[np.float32], runtime: str, precision: str, least: float
) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    found = open_forward(frozen, runtime, precision, cores=1)(images())
    assert (found.dtype, found.shape) == (reference.dtype, reference.shape)
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(reference, axis=1)
    assert ((found * reference).sum(axis=1) / norms).min() >= least
    if precision == "float32":
        # Sums of float32 in another order: an error of the size of the summands, not of their sum.
        # OpenVINO comes as near as 2e-6 with AVX-512; with SSE4.1 it is 8e-5 off, of 83 at most.
        largest = float(np.abs(reference).max())
        np.testing.assert_allclose(found, reference, rtol=1e-4, atol=2e-6 * largest)


@pytest.mark.parametrize(("runtime", "precision", "_"), [("keras", "float32", 1), *OTHERS])
def test_a_row_does_not_depend_on_what_shares_its_batch(
    frozen: FrozenModel, runtime: str, precision: str, _: float
) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    forward = open_forward(frozen, runtime, precision, cores=2)
    rows = forward(images())
    for start, stop in ((0, 1), (3, 4), (2, 7), (8, 9), (0, 8)):
        np.testing.assert_array_equal(forward(images()[start:stop]), rows[start:stop])
    np.testing.assert_array_equal(forward(images()[::-1]), rows[::-1])
    for chosen in ([7, 3], [3, 7], [5, 0, 3, 7], [8, 8, 8, 8, 3, 8, 8, 7]):
        np.testing.assert_array_equal(forward(images()[chosen]), rows[chosen])


@pytest.mark.parametrize(("runtime", "precision"), [other[:2] for other in OTHERS[:3]])
def test_many_images_one_by_one(frozen: FrozenModel, runtime: str, precision: str) -> None:
    """Where only few images in a hundred show that another kernel was taken."""
    if runtime == "openvino":
        pytest.importorskip("openvino")
    forward, many = open_forward(frozen, runtime, precision, cores=2), images(200)
    together = np.concatenate([forward(many[start : start + 8]) for start in range(0, 200, 8)])
    alone = np.concatenate([forward(many[row : row + 1]) for row in range(200)])
    np.testing.assert_array_equal(alone, together)


@pytest.mark.parametrize(("runtime", "precision", "_"), OTHERS[:3])
@pytest.mark.parametrize("cores", [2, 3, 16])
def test_the_number_of_cores_changes_no_bit(
    frozen: FrozenModel, runtime: str, precision: str, _: float, cores: int
) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    one = open_forward(frozen, runtime, precision, cores=1)
    several = open_forward(frozen, runtime, precision, cores=cores)
    assert several.workers == min(cores, 8)
    with ThreadPoolExecutor(several.workers) as pool:
        parts = list(pool.map(several, np.array_split(images(), 4)))
    np.testing.assert_array_equal(np.concatenate(parts), one(images()))


_FIRST_CALLS_TOGETHER = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from headstart.encoders.frozen import FrozenModel
from headstart.encoders.runtimes import open_forward
forward = open_forward(FrozenModel(Path(sys.argv[1]), None), sys.argv[2], "float32", cores=2)
forward.opening.result()
together = threading.Barrier(2)
def call(_):
    together.wait()
    return forward(np.zeros((1, {size}, {size}, 3), np.uint8))
with ThreadPoolExecutor(2) as pool:
    one, other = pool.map(call, range(2))
print(len(one), (one == other).all())
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_first_calls_of_two_threads_do_not_wait_for_each_other(
    frozen: FrozenModel, runtime: str
) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    forward = open_forward(frozen, runtime, "float32", cores=1)  # makes the files
    forward(images())
    script = _FIRST_CALLS_TOGETHER.format(size=images().shape[1])
    # Without a first call alone, one process in about twenty-five hung in OpenVINO 2026.4.
    for _ in range(60):
        command = [sys.executable, "-c", script, str(frozen.folder), runtime]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert (done.returncode, done.stdout) == (0, "1 True\n"), done.stderr


def limited(forward: Run, most: int, error: Exception) -> Run:
    def run(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        if len(batch) > most:
            raise error
        return forward(batch)

    return run


@pytest.mark.parametrize("most", [8, 3, 1])
def test_a_batch_that_does_not_fit_is_halved_and_stays_so(frozen: FrozenModel, most: int) -> None:
    forward = open_forward(frozen, "onnxruntime", "float32", cores=1)
    fitting = HalvingForward(limited(forward, most, MemoryError()))
    np.testing.assert_array_equal(fitting(images()), forward(images()))
    assert fitting.limit is not None
    assert fitting.limit <= most
    limit = fitting.limit
    fitting(images())
    assert fitting.limit == limit


def test_what_fits_nowhere_is_raised(frozen: FrozenModel) -> None:
    forward = open_forward(frozen, "onnxruntime", "float32", cores=1)
    with pytest.raises(MemoryError):
        HalvingForward(limited(forward, 0, MemoryError()))(images())
    with pytest.raises(ValueError, match="another"):
        HalvingForward(limited(forward, 4, ValueError("another")))(images())


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes"),
        RuntimeError("[ONNXRuntimeError] : 6 : BFCArena: Failed to allocate memory"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_running_out_of_memory_is_known_in_every_runtime(
    frozen: FrozenModel, error: Exception
) -> None:
    forward = open_forward(frozen, "onnxruntime", "float32", cores=1)
    fitting = HalvingForward(limited(forward, 4, error))
    np.testing.assert_array_equal(fitting(images()), forward(images()))
    with pytest.raises(ValueError, match="no room"):
        HalvingForward(limited(forward, 4, ValueError("no room for this shape")))(images())


def machine(monkeypatch: pytest.MonkeyPatch, *, bf16: bool, gpu: bool, openvino: bool) -> None:
    monkeypatch.setattr(runtimes, "has_bf16", lambda: bf16)
    monkeypatch.setattr(runtimes, "has_gpu", lambda: gpu)
    monkeypatch.setattr(runtimes, "_installed", lambda name: name != "openvino" or openvino)


def chosen(runtime: Any, precision: Any) -> tuple[str, str]:
    done = resolve(ExtractParams(runtime=runtime, precision=precision))
    return done.runtime, done.precision


@pytest.mark.parametrize(
    ("asked", "bf16", "gpu", "openvino", "wanted"),
    [
        (("auto", "float32"), True, False, True, ("onnxruntime", "float32")),
        (("auto", "auto"), True, False, True, ("openvino", "bfloat16")),
        (("auto", "auto"), True, False, False, ("onnxruntime", "float32")),
        (("auto", "auto"), False, False, True, ("onnxruntime", "float32")),
        (("auto", "bfloat16"), False, False, False, ("keras", "bfloat16")),
        (("auto", "float32"), False, True, True, ("keras", "float32")),
        (("keras", "auto"), True, False, False, ("keras", "bfloat16")),
        (("onnxruntime", "auto"), True, False, True, ("onnxruntime", "float32")),
        (("openvino", "float32"), False, False, True, ("openvino", "float32")),
    ],
)
def test_auto_chooses_by_rule(
    monkeypatch: pytest.MonkeyPatch,
    asked: tuple[str, str],
    bf16: bool,
    gpu: bool,
    openvino: bool,
    wanted: tuple[str, str],
) -> None:
    machine(monkeypatch, bf16=bf16, gpu=gpu, openvino=openvino)
    assert chosen(*asked) == wanted


def test_auto_is_never_the_default() -> None:
    extract = ExtractParams()
    assert (extract.runtime, extract.precision) == ("onnxruntime", "float32")
    assert resolve(extract) == extract


def test_a_runtime_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, bf16=True, gpu=False, openvino=False)
    message = r"openvino is not: install the extra openvino, as in pip install 'headstart\[openv"
    with pytest.raises(ParamsError, match=message):
        chosen("openvino", "float32")


def test_a_precision_that_the_runtime_lacks() -> None:
    with pytest.raises(ParamsError, match=r"must be float32 where .* onnxruntime, but got bfl"):
        chosen("onnxruntime", "bfloat16")
