"""Extraction end to end: only what is new, the same bytes whatever the history."""

import dataclasses
import shutil
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from headstart.cache.shards import read_shard
from headstart.common.errors import DataError, DiskError
from headstart.encoders import runtimes
from headstart.encoders.runtimes import Run, Session, open_forward
from headstart.features import extractor as extractor_module
from headstart.features.cache_commands import collect, verify
from headstart.features.extractor import (
    Extraction,
    Extractor,
    extract_features,
    faster_extraction,
)
from headstart.features.feature_store import FeatureStore
from headstart.features.pipeline import Decoder, Task
from headstart.features.recipe import feature_recipe
from headstart.images.decode import decode_input
from headstart.params.extract import ExtractParams
from headstart.stages.extract import summary
from tests.common.disks import make_room, read_only, small_disk
from tests.features.samples import extractor, manifest_of, write_images


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    write_images(folder, 20)
    return folder


def run(folder: Path, extractor: Extractor, name: str = "features.h5") -> Extraction:
    out = folder.parent
    return extract_features(extractor, manifest_of(folder), folder, out / name, out / "backbone.h5")


def loaded(folder: Path, name: str = "features.h5") -> NDArray[np.float32]:
    with FeatureStore(folder.parent / name) as store:
        return store.rows(np.arange(len(store))).features


def test_rows_are_the_forward_pass_of_the_decoded_images(images: Path, cache_root: Path) -> None:
    done = run(images, extractor(cache_root))
    assert (done.n_images, done.n_extracted, done.n_cached) == (20, 20, 0)
    manifest = manifest_of(images)
    forward = open_forward(extractor(cache_root).frozen(), "onnxruntime", "float32", cores=1)
    squares = [
        decode_input((images / path).read_bytes(), extractor(cache_root).image)
        for path in manifest.paths
    ]
    with FeatureStore(images.parent / "features.h5") as store:
        np.testing.assert_array_equal(
            store.rows(np.arange(len(store))).features[:, 0], forward(np.stack(squares))
        )
        assert store.fingerprint == done.fingerprint
        assert store.recipe == extractor(cache_root).recipe()
        assert store.classes == ("cat", "dog")
        for name in ("sha256", "paths", "splits", "groups"):
            assert list(getattr(store, name)) == getattr(manifest, name), name


def test_only_new_images_are_decoded(images: Path, cache_root: Path) -> None:
    run(images, extractor(cache_root))
    old = list(images.glob("*/*"))
    write_images(images, 3, first=100)
    manifest = manifest_of(images)
    for path in old:
        path.unlink()
    out = images.parent
    done = extract_features(
        extractor(cache_root), manifest, images, out / "features.h5", out / "backbone.h5"
    )
    assert (done.n_extracted, done.n_cached) == (3, 20)


def test_a_row_follows_its_image_to_another_name(images: Path, cache_root: Path) -> None:
    run(images, extractor(cache_root))
    with FeatureStore(images.parent / "features.h5") as store:
        before = dict(zip(store.sha256, store.rows(np.arange(len(store))).features, strict=True))
    for number, path in enumerate(sorted(images.glob("*/*"), reverse=True)):
        path.rename(path.with_name(f"renamed-{number:03d}{path.suffix}"))
    assert run(images, extractor(cache_root)).n_extracted == 0
    with FeatureStore(images.parent / "features.h5") as store:
        assert list(store.sha256) != list(before)
        for sha256, row in zip(
            store.sha256, store.rows(np.arange(len(store))).features, strict=True
        ):
            np.testing.assert_array_equal(row, before[sha256])


def test_the_same_bytes_whatever_the_history(images: Path, cache_root: Path) -> None:
    write_images(images, 7, first=200)
    run(images, extractor(cache_root, ExtractParams(batch_size=5)), "one_by_one.h5")
    for path in (cache_root / "features").glob("*/shards/*"):
        path.unlink()
    for path in sorted(images.glob("*/002*")):
        path.rename(path.with_suffix(".aside"))
    aside = sorted(images.glob("*/*.aside"))
    assert len(aside) == 7
    moved = [path.rename(images.parent / path.name) for path in aside]
    run(images, extractor(cache_root), "fewer.h5")
    for number, path in enumerate(moved):
        folder = images / ("cat", "dog")[int(path.stem) % 2]
        path.rename(folder / f"{path.stem}.{'png' if int(path.stem) % 2 else 'jpg'}")
        assert number < 7
    done = run(images, extractor(cache_root), "again.h5")
    assert done.n_extracted == 7
    again = (images.parent / "again.h5").read_bytes()
    assert again == (images.parent / "one_by_one.h5").read_bytes()


def test_copies_of_an_image_are_extracted_once(images: Path, cache_root: Path) -> None:
    copy = images / "dog" / "copy.jpg"
    copy.write_bytes((images / "cat" / "00000.jpg").read_bytes())
    done = run(images, extractor(cache_root))
    assert (done.n_images, done.n_extracted) == (21, 20)
    with FeatureStore(images.parent / "features.h5") as store:
        rows = [store.paths.index(path) for path in ("cat/00000.jpg", "dog/copy.jpg")]
        one, other = store.rows(np.array(rows)).features
        np.testing.assert_array_equal(one, other)


def test_a_damaged_shard_is_extracted_again(images: Path, cache_root: Path) -> None:
    run(images, extractor(cache_root), "whole.h5")
    (shard,) = (cache_root / "features").glob("*/shards/*.h5")
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.warns(UserWarning, match="moved to .*damaged and its rows are computed again"):
        done = run(images, extractor(cache_root))
    assert done.n_extracted == 20
    whole = (images.parent / "whole.h5").read_bytes()
    assert (images.parent / "features.h5").read_bytes() == whole


def test_an_image_that_changed_since_is_refused(images: Path, cache_root: Path) -> None:
    manifest = manifest_of(images)
    path = images / "dog" / "00019.png"
    path.write_bytes((images / "dog" / "00001.png").read_bytes())
    out = images.parent
    small = extractor(cache_root, ExtractParams(batch_size=4))
    with pytest.raises(DataError, match=r"00019\.png has changed since: run `dvc repro`"):
        extract_features(small, manifest, images, out / "f.h5", out / "b.h5")
    path.unlink()
    with pytest.raises(DataError, match=r"00019\.png is not \(No such file.*\): run `dvc repro`"):
        extract_features(small, manifest, images, out / "f.h5", out / "b.h5")
    # What was finished before the error is kept.
    write_images(images, 1, first=19)
    assert run(images, extractor(cache_root)).n_cached == 16


def test_views_share_the_plain_rows(images: Path, cache_root: Path) -> None:
    run(images, extractor(cache_root), "plain.h5")
    done = run(images, extractor(cache_root, ExtractParams(views=3), seed=5))
    assert done.n_extracted == 40
    three = loaded(images)
    assert three.shape[:2] == (20, 3)
    np.testing.assert_array_equal(three[:, :1], loaded(images, "plain.h5"))
    assert (np.abs(three[:, 0] - three[:, 1]).max(axis=1) > 0).all()
    two = run(images, extractor(cache_root, ExtractParams(views=2), seed=5), "two.h5")
    assert two.n_extracted == 0
    np.testing.assert_array_equal(loaded(images, "two.h5"), three[:, :2])
    other = run(images, extractor(cache_root, ExtractParams(views=2), seed=6), "other.h5")
    assert other.n_extracted == 20


NOTHING_NEW = """
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from tests.features.samples import extractor, manifest_of
from tests.features.test_extractor import extract_features
folder, cache_root = Path(sys.argv[1]), Path(sys.argv[2])
heavy = {"tensorflow", "keras", "jax", "onnxruntime", "openvino", "onnx"}
before = set(sys.modules)
done = extract_features(
    extractor(cache_root), manifest_of(folder), folder,
    folder.parent / "features.h5", folder.parent / "backbone.h5",
)
print(done.n_extracted, sorted(heavy & (set(sys.modules) - before)))
"""


def test_with_nothing_new_no_runtime_is_loaded(
    images: Path, cache_root: Path, repository: Path
) -> None:
    command = [sys.executable, "-c", NOTHING_NEW, str(images), str(cache_root)]

    def answer() -> str:
        done = subprocess.run(command, cwd=repository, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    # The exported network is in the cache, so that the first run needs no TensorFlow either.
    assert answer() == "20 ['onnxruntime']"
    first = [(images.parent / name).read_bytes() for name in ("features.h5", "backbone.h5")]
    assert answer() == "0 []"
    assert first == [(images.parent / name).read_bytes() for name in ("features.h5", "backbone.h5")]


def test_several_processes_share_the_work(images: Path, cache_root: Path, repository: Path) -> None:
    write_images(images, 380, first=1000)
    command = [sys.executable, "-c", NOTHING_NEW]
    folders = []
    for number in range(3):
        folder = images.parent / str(number) / "images"
        folder.parent.mkdir()
        folder.symlink_to(images)
        folders.append(folder)
    started = [
        subprocess.Popen(
            [*command, str(folder), str(cache_root)],
            cwd=repository,
            stdout=subprocess.PIPE,
            text=True,
        )
        for folder in folders
    ]
    answers = [process.communicate(timeout=120)[0].split() for process in started]
    assert sum(int(answer[0]) for answer in answers) == 400
    files = {(folder.parent / "features.h5").read_bytes() for folder in folders}
    assert len(files) == 1


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_batch_size_changes_no_byte(images: Path, cache_root: Path, batch_size: int) -> None:
    run(images, extractor(cache_root, ExtractParams(batch_size=batch_size)))
    shutil.rmtree(cache_root / "features")
    run(images, extractor(cache_root, ExtractParams(batch_size=7)), "seven.h5")
    seven = (images.parent / "seven.h5").read_bytes()
    assert (images.parent / "features.h5").read_bytes() == seven


def opened(run: Run) -> Future[Session]:
    opening: Future[Session] = Future()
    opening.set_result(Session(run, ("CPU",)))
    return opening


def test_a_batch_that_does_not_fit_is_halved(
    images: Path, cache_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = runtimes.open_forward
    sizes: list[int] = []

    def tight(*arguments: Any) -> Any:
        forward = real(*arguments)

        def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            sizes.append(len(pixels))
            if len(pixels) > 6:
                raise MemoryError
            return forward(pixels)

        return dataclasses.replace(forward, opening=opened(run), workers=1, batch_size=32)

    run(images, extractor(cache_root), "whole.h5")
    for path in (cache_root / "features").glob("*/shards/*"):
        path.unlink()
    monkeypatch.setattr(extractor_module, "open_forward", tight)
    assert run(images, extractor(cache_root)).n_extracted == 20
    assert sizes == [20, 10, 5, 5, 5, 5]
    whole = (images.parent / "whole.h5").read_bytes()
    assert (images.parent / "features.h5").read_bytes() == whole


def test_images_are_decoded_while_the_forward_pass_opens(
    images: Path, cache_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(images, extractor(cache_root), "at_once.h5")
    shutil.rmtree(cache_root / "features")
    real, decode = runtimes.open_forward, Decoder.__call__
    decoded: list[str] = []
    eight_are_decoded = threading.Event()
    found_decoded: list[bool] = []

    def slow(*arguments: Any) -> Any:
        forward = real(*arguments)

        def opened_late() -> Session:
            found_decoded.append(eight_are_decoded.wait(20))
            return forward.opening.result()

        opening = ThreadPoolExecutor(1).submit(opened_late)
        return dataclasses.replace(forward, opening=opening, workers=2)

    def counted(self: Decoder, task: Task) -> NDArray[np.uint8]:
        decoded.append(task.sha256)
        if len(decoded) == 8:
            eight_are_decoded.set()
        return decode(self, task)

    monkeypatch.setattr(extractor_module, "open_forward", slow)
    monkeypatch.setattr(Decoder, "__call__", counted)
    assert run(images, extractor(cache_root, ExtractParams(batch_size=2))).n_extracted == 20
    assert (found_decoded, len(decoded)) == ([True], 20)
    at_once = (images.parent / "at_once.h5").read_bytes()
    assert (images.parent / "features.h5").read_bytes() == at_once


def test_many_views_of_an_image_come_in_batches(
    images: Path, cache_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = runtimes.open_forward
    sizes: list[int] = []

    def watched(*arguments: Any) -> Any:
        forward = real(*arguments)

        def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            sizes.append(len(pixels))
            return forward(pixels)

        return dataclasses.replace(forward, opening=opened(run), workers=2)

    monkeypatch.setattr(extractor_module, "open_forward", watched)
    done = run(images, extractor(cache_root, ExtractParams(views=7, batch_size=3)))
    assert (done.n_extracted, sum(sizes), max(sizes)) == (140, 140, 3)


@pytest.mark.parametrize("moment", ["open_forward", "write_features"])
def test_nobody_makes_room_where_an_extraction_runs(
    images: Path, cache_root: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    real = getattr(extractor_module, moment)

    def make_room_first(*arguments: Any, **options: Any) -> Any:
        assert collect(cache_root, older_than_days=0, max_bytes=0).removed == ()
        return real(*arguments, **options)

    monkeypatch.setattr(extractor_module, moment, make_room_first)
    assert run(images, extractor(cache_root)).n_extracted == 20
    assert run(images, extractor(cache_root)).n_extracted == 0
    assert len(collect(cache_root, max_bytes=0).removed) == 1


def test_a_weights_file_is_hashed_once(
    images: Path, cache_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = feature_recipe
    n_calls = 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        return real(*arguments, **options)

    monkeypatch.setattr(extractor_module, "feature_recipe", counted)
    run(images, extractor(cache_root))
    assert n_calls == 1


@pytest.mark.parametrize(
    ("runtime", "libraries", "device"),
    [("onnxruntime", {"onnxruntime"}, "CPUExecutionProvider"), ("keras", {"keras"}, "cpu:0")],
)
def test_shards_say_what_computed_them(
    images: Path, cache_root: Path, runtime: Any, libraries: set[str], device: str
) -> None:
    chosen = extractor(cache_root, ExtractParams(runtime=runtime))
    run(images, chosen)
    (path,) = chosen.cache().shards_folder.glob("*.h5")
    found = read_shard(path).provenance
    assert libraries | {"pillow"} <= set(found["versions"])
    assert device in [name.removeprefix("/") for name in found["devices"]]
    assert found["processor"]


def test_the_summary_says_what_was_done(images: Path, cache_root: Path) -> None:
    first = summary(run(images, extractor(cache_root)))
    assert first.startswith("20 images by efficientnet-lite0 in onnxruntime float32: 20 rows extr")
    second = summary(run(images, extractor(cache_root)))
    assert second.endswith(": 0 rows extracted, 20 from the cache")


def with_other_weights(path: Path) -> None:
    """Change a model file so that it still opens, and computes something else."""
    if path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            names: list[str] = []
            file.visit(names.append)
            kernel = next(file[name] for name in names if name.endswith("kernel"))
            kernel[...] = kernel[...] * 2 + 1
        return
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if len(t.dims) == 4)
    values = onnx.numpy_helper.to_array(tensor) * 2 + 1
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)


def test_a_model_in_the_cache_that_was_changed_computes_no_row(
    images: Path, cache_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(images, extractor(cache_root), "whole.h5")
    whole = loaded(images, "whole.h5")
    encoder = (images.parent / "backbone.h5").read_bytes()
    shutil.rmtree(cache_root / "features")
    for name in ("model.onnx", "backbone.h5"):
        (path,) = (cache_root / "backbones").glob(f"*/{name}")
        with_other_weights(path)
    damaged = {path.name for path in verify(cache_root).damaged_models}
    assert damaged == {"backbone.h5", "model.onnx"}
    assert run(images, extractor(cache_root)).n_extracted == 20
    np.testing.assert_allclose(loaded(images), whole, rtol=1e-4, atol=2e-5)
    assert (images.parent / "backbone.h5").read_bytes() == encoder
    assert verify(cache_root).damaged_models == ()
    told = capsys.readouterr().err
    assert "model.onnx is not what was written there; it is made again" in told


def test_a_changed_encoder_is_not_handed_on_when_every_row_is_cached(
    images: Path, cache_root: Path
) -> None:
    run(images, extractor(cache_root))
    encoder = (images.parent / "backbone.h5").read_bytes()
    with_other_weights(next((cache_root / "backbones").glob("*/backbone.h5")))
    assert run(images, extractor(cache_root)).n_extracted == 0
    assert (images.parent / "backbone.h5").read_bytes() == encoder


def test_a_read_only_cache_is_read(images: Path, cache_root: Path) -> None:
    run(images, extractor(cache_root))
    with read_only(cache_root):
        done = run(images, extractor(cache_root), "again.h5")
        assert (done.n_extracted, done.n_cached) == (0, 20)
        write_images(images, 1, first=100)
        with pytest.raises(DiskError, match="must be writable while it lacks rows") as caught:
            run(images, extractor(cache_root), "more.h5")
    assert f"but {cache_root}/features/" in str(caught.value)
    assert "set HEADSTART_CACHE to another folder" in str(caught.value)
    whole = (images.parent / "features.h5").read_bytes()
    assert (images.parent / "again.h5").read_bytes() == whole
    assert not (images.parent / "more.h5").exists()


def test_a_damaged_shard_of_a_read_only_cache_is_ignored(images: Path, cache_root: Path) -> None:
    run(images, extractor(cache_root))
    (shard,) = (cache_root / "features").glob("*/shards/*.h5")
    changed = bytearray(shard.read_bytes())
    changed[-100] ^= 1
    shard.write_bytes(changed)
    with (
        read_only(cache_root),
        pytest.warns(UserWarning, match="cannot be moved away, so it is ignored"),
        pytest.raises(DiskError, match="must be writable while it lacks rows"),
    ):
        run(images, extractor(cache_root))


def test_a_cache_path_that_is_a_file(images: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(
        DiskError, match=r"the cache must be writable .* is not \(Not a directory\)"
    ):
        run(images, extractor(tmp_path / "cache"))


def test_a_full_cache_is_one_sentence_and_extraction_goes_on(
    images: Path, cache_root: Path
) -> None:
    with small_disk(cache_root / "features", 60_000):
        with pytest.raises(DiskError, match=r"shards/.*\(No space left on device\): make room"):
            run(images, extractor(cache_root))
        make_room(cache_root / "features", 10_000_000)
        assert run(images, extractor(cache_root)).n_images == 20


def test_what_would_be_faster_fits_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extractor_module, "has_gpu", lambda: False)
    monkeypatch.setattr(extractor_module, "has_bf16", lambda: True)
    assert faster_extraction(ExtractParams(encoders="vgg16")) == (
        "extract.runtime: openvino with extract.precision: bfloat16; a smaller encoder, such as "
        "efficientnet-lite0"
    )
    assert faster_extraction(ExtractParams(runtime="openvino", precision="bfloat16")) == ""
    monkeypatch.setattr(extractor_module, "has_bf16", lambda: False)
    assert faster_extraction(ExtractParams()) == ""
    slow = faster_extraction(ExtractParams(runtime="keras", views=4))
    assert slow == "extract.runtime: onnxruntime; fewer extract.views"
