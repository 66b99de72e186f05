"""The store of pixels: what is written is read, in any shape, order and process."""

import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from headstart.common.errors import DataError, FormatError
from headstart.dataset.ingest import ingest
from headstart.dataset.pixel_store import ImageStore, pack, write_store
from headstart.images.decode import decode_input
from headstart.images.input_pixels import InputPixels
from headstart.params.image import ImageParams
from headstart.params.ingest import IngestParams
from headstart.params.pack import PackParams
from tests.images.pictures import write_classes

CLASSES = ["a", "ünï"]


def write(path: Path, pixels: NDArray[Any], compression: str = "none") -> ImageStore:
    n = len(pixels)
    write_store(
        path,
        iter(pixels),
        shape=pixels.shape,
        dtype=pixels.dtype,
        label_ids=np.arange(n, dtype=np.int64) % 2,
        sha256=[f"{i:064x}" for i in range(n)],
        splits=["validation" if i % 3 else "train" for i in range(n)],
        attributes={"classes": CLASSES},
        compression=compression,
    )
    return ImageStore(path)


arrays = npst.arrays(
    st.sampled_from([np.uint8, np.uint16, np.float32]),
    npst.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=7),
    elements=st.integers(0, 200),
)


@settings(deadline=None, max_examples=60)
@given(arrays, st.sampled_from(["none", "gzip", "lzf"]), st.data())
def test_any_array_survives_the_trip(
    tmp_path_factory: pytest.TempPathFactory, pixels: NDArray[Any], compression: str, data: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "store.h5"
    store = write(path, pixels, compression)
    n = len(pixels)
    assert len(store) == n
    assert store.shape == pixels.shape
    assert np.array_equal(store[:], pixels)
    rows = data.draw(st.lists(st.integers(-n, n - 1), max_size=12))
    assert np.array_equal(store[rows], pixels[np.array(rows, np.int64)])
    assert np.array_equal(store[rows and rows[0]], pixels[rows and rows[0]]) if rows else True
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    assert np.array_equal(store[mask], pixels[mask])
    part = data.draw(st.slices(n))
    assert np.array_equal(store[part], pixels[part])
    batch_size = data.draw(st.integers(1, 9))
    batches = list(store.batches(batch_size))
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert np.array_equal(np.concatenate(batches), pixels)
    assert store[0:0].shape == store[[]].shape == (0, *pixels.shape[1:])
    store.close()
    first = path.read_bytes()
    with write(path, pixels, compression) as again:
        assert np.array_equal(again[0], pixels[0])
    assert path.read_bytes() == first


def test_what_stands_beside_the_pixels(tmp_path: Path) -> None:
    store = write(tmp_path / "s.h5", np.zeros((5, 2, 2, 3), np.uint8))
    assert store.labels.tolist() == [0, 1, 0, 1, 0]
    assert store.labels.dtype == np.int64
    assert store.classes == tuple(CLASSES)
    assert store.splits == ["train", "validation", "validation", "train", "validation"]
    assert store.sha256[4] == f"{4:064x}"


@pytest.mark.parametrize("index", [5, -6, [0, 5], [-6]])
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_rows_that_are_not_there(tmp_path: Path, index: Any, compression: str) -> None:
    store = write(tmp_path / "s.h5", np.zeros((5, 2, 2, 3), np.uint8), compression)
    with pytest.raises(IndexError):
        store[index]


def _sum(store: ImageStore, row: int) -> int:
    return int(store[row].sum())


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_several_processes(tmp_path: Path, compression: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 8, 8, 3), np.uint8)
    store = write(tmp_path / "s.h5", pixels, compression)
    assert store[0].sum() == pixels[0].sum()  # open here before it is open there
    context = get_context("forkserver")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        sums = list(pool.map(_sum, [store] * 20, range(20)))
    assert sums == pixels.sum(axis=(1, 2, 3)).tolist()
    assert len(pickle.dumps(store)) < 5000


def test_uncompressed_pixels_lie_in_one_piece(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3), np.uint8)
    write(tmp_path / "s.h5", pixels)
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["images"].chunks is None
        assert np.array_equal(file["images"][:], pixels)
    write(tmp_path / "s.h5", pixels, "gzip")
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["images"].chunks == (1, 8, 8, 3)


def test_files_that_are_no_store(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    with pytest.raises(FormatError, match="must exist"):
        ImageStore(path)
    path.write_bytes(b"no hdf5")
    with pytest.raises(FormatError, match="truncated or damaged"):
        ImageStore(path)
    with h5py.File(path, "w") as file:
        file.attrs["format"], file.attrs["format_version"] = "headstart-images", 2
    with pytest.raises(
        FormatError, match=r"must be of version 1 of headstart-images, but is of version 2: run"
    ):
        ImageStore(path)


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_pack_decodes_what_the_manifest_lists(tmp_path: Path, compression: Any) -> None:
    write_classes(tmp_path / "images", 40)
    manifest = ingest(tmp_path / "images", IngestParams(), seed=0, thresholds={}).manifest
    image = ImageParams(size=16, fit="crop")
    params = PackParams(splits=("test",), compression=compression)
    kept = InputPixels(tmp_path / "cache", tmp_path / "images", image, max_pixels=10**8)
    arguments = (tmp_path / "s.h5", manifest, kept.read, image, params)
    count = pack(*arguments)
    chosen = manifest.select("test")
    store = ImageStore(tmp_path / "s.h5")
    assert count == len(store) == len(chosen) > 0
    for row, path in enumerate(chosen.paths):
        data = (tmp_path / "images" / path).read_bytes()
        assert np.array_equal(store[row], decode_input(data, image))
    changed = tmp_path / "images" / chosen.paths[0]
    changed.write_bytes(changed.read_bytes() + b"x")
    with pytest.raises(DataError, match="has changed since: run `dvc repro`"):
        pack(*arguments)
    changed.unlink()
    with pytest.raises(DataError, match="No such file or directory"):
        pack(*arguments)
