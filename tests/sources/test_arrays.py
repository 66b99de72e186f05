"""Data sets from packages: restricted pickles, pictures with the same bytes everywhere."""

import gzip
import io
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray
from PIL import Image

from headstart.common.errors import DataError
from headstart.sources.arrays import encode_png, read_array, read_spec, write_pictures


@pytest.fixture
def spec_text(repository: Path) -> str:
    return (repository / "data" / "sources" / "animal-silhouettes.yaml").read_text()


def pickled(folder: Path, value: object, protocol: int = 4) -> Path:
    path = folder / "value.gz"
    path.write_bytes(gzip.compress(pickle.dumps(value, protocol)))
    return path


@pytest.mark.parametrize("protocol", range(3, 6))
@pytest.mark.parametrize("dtype", ["u1", "<i8", ">f4"])
def test_arrays_are_read(tmp_path: Path, protocol: int, dtype: str) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    read = read_array(pickled(tmp_path, array, protocol))
    assert np.array_equal(read, array)
    assert (read.dtype.kind, read.itemsize) == (array.dtype.kind, array.itemsize)


class _Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch /tmp/headstart-was-here",)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (_Evil(), "may not name posix.system"),
        ([np.zeros(2)], "must hold a numpy array, but holds a list"),
        (np.array([_Evil()], dtype=object), "may not hold objects"),
        (np.random.default_rng(0), "may not name numpy.random"),
        ({1: 2}, "holds a dict"),
    ],
)
def test_pickles_of_anything_else_are_refused(tmp_path: Path, value: object, words: str) -> None:
    with pytest.raises(DataError) as caught:
        read_array(pickled(tmp_path, value))
    assert words in str(caught.value)


def test_damaged_and_foreign_files_are_explained(tmp_path: Path) -> None:
    path = pickled(tmp_path, np.arange(100))
    whole = path.read_bytes()
    for data, words in (
        (whole[:-20], "cannot be unpacked"),
        (b"text", "must be gzip"),
        (gzip.compress(b"no pickle"), "damaged pickle"),
    ):
        path.write_bytes(data)
        with pytest.raises(DataError, match=words):
            read_array(path)


@given(npst.arrays(np.uint8, st.tuples(st.integers(1, 300), st.integers(1, 300))))
def test_pngs_hold_the_pixels(pixels: NDArray[np.uint8]) -> None:
    with Image.open(io.BytesIO(encode_png(pixels))) as image:
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), pixels)


def test_the_bytes_of_a_png_are_pinned() -> None:
    # Hashes of the default data, and so its splits, hang on these bytes.
    data = encode_png(np.arange(12, dtype=np.uint8).reshape(3, 4))
    assert zlib.crc32(data) == 81873525


def write_spec(folder: Path, text: str) -> Path:
    path = folder / "spec.yaml"
    path.write_text(text)
    return path


def test_the_default_data(tmp_path: Path, spec_text: str) -> None:
    few = spec_text.replace("images_per_class: 150", "images_per_class: 2")
    assert write_pictures(read_spec(write_spec(tmp_path, few)), tmp_path / "out") == 20
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names[:4] + names[-1:] == ["bear", "bird", "cat", "cow", "zebra"]
    assert len(names) == 10
    with Image.open(tmp_path / "out" / "zebra" / "09000.png") as image:
        assert image.size == (28, 28)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("package: animal-mnist", "package: no-such-package", "requirements/data.txt"),
        ("animal_data_version_3", "animal_data_version_4", "must hold animal_mnist/data"),
        ("sha256: 68a3", "sha256: 0000", "must have the sha256 0000"),
        ("format_version: 1", "format_version: 2", "format_version"),
        ("images_per_class: 150", "images_per_klass: 150", "images_per_klass"),
        ("format: headstart-source", "format: [", "must be a spec file"),
    ],
)
def test_mistakes_in_spec_files(
    tmp_path: Path, spec_text: str, old: str, new: str, words: str
) -> None:
    assert old in spec_text
    with pytest.raises(DataError) as caught:
        write_pictures(read_spec(write_spec(tmp_path, spec_text.replace(old, new))), tmp_path / "o")
    assert words in str(caught.value)
