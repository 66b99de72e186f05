"""Input pixels are decoded once, and are the same wherever they come from."""

import hashlib
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headstart.common.errors import DataError
from headstart.dataset.ingest import Ingested, ingest
from headstart.dataset.pixel_store import ImageStore, pack
from headstart.features.extractor import Extractor, extract_features
from headstart.images import decode as decode_module
from headstart.images.decode import decode_input
from headstart.images.input_pixels import InputPixels, PicturePixels
from headstart.params.image import ImageParams
from headstart.params.ingest import IngestParams
from headstart.params.pack import PackParams
from tests.common.disks import read_only, small_disk
from tests.features.samples import extractor, write_images

SIZE_PX = 32


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    write_images(folder, 40)
    return folder


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The hash of every file that is decoded, in this process."""
    real, hashes = decode_module._decode, []

    def counted(data: bytes, *arguments: Any) -> Any:
        hashes.append(hashlib.sha256(data).digest())
        return real(data, *arguments)

    monkeypatch.setattr(decode_module, "_decode", counted)
    return hashes


def ingested(folder: Path, cache: Path, size: int = SIZE_PX) -> Ingested:
    image = ImageParams(size=size)
    pixels = InputPixels(cache, folder, image, max_pixels=10**8)
    memo = cache / "ingest" / "images.sqlite3"
    found = ingest(folder, IngestParams(), seed=0, thresholds={}, cache=memo, pixels=pixels)
    n_more = pixels.complete(found.manifest.paths, found.manifest.sha256)
    return replace(found, n_decoded=found.n_decoded + n_more)


def packed(folder: Path, found: Ingested, cache: Path, size: int = SIZE_PX) -> bytes:
    path = folder.parent / "images.h5"
    image = ImageParams(size=size)
    kept = InputPixels(cache, folder, image, max_pixels=10**8)
    splits = PackParams(splits=("train", "validation", "test"))
    with kept.in_use(found.manifest.sha256):
        pack(path, found.manifest, kept.read, image, splits)
    return path.read_bytes()


def extracted(folder: Path, found: Ingested, chosen: Extractor) -> int:
    out = folder.parent
    done = extract_features(
        chosen, found.manifest, folder, out / "features.h5", out / "backbone.h5"
    )
    return done.n_extracted


def test_an_image_is_decoded_once(tmp_path: Path, decoded: list[bytes]) -> None:
    cache = tmp_path / "cache"
    few = tmp_path / "few" / "images"
    write_images(few, 20)  # so few are read in this process
    found = ingested(few, cache)
    assert (found.n_decoded, len(decoded)) == (20, 20)
    packed(few, found, cache)
    assert extracted(few, found, extractor(cache, size=SIZE_PX)) == 20
    assert len(decoded) == 20
    # One more image is one more decoding.
    write_images(few, 1, first=100)
    found = ingested(few, cache)
    packed(few, found, cache)
    assert extracted(few, found, extractor(cache, size=SIZE_PX)) == 1
    assert (found.n_decoded, len(decoded)) == (1, 21)
    # Another size decodes for the pixels alone; back at the first nothing does.
    assert ingested(few, cache, size=24).n_decoded == 21
    packed(few, found, cache, size=24)
    assert ingested(few, cache).n_decoded == 0
    assert len(decoded) == 42


def test_workers_hand_over_the_same_pixels(images: Path, tmp_path: Path) -> None:
    """Forty files are read in worker processes."""
    cache = tmp_path / "cache"
    found = ingested(images, cache)
    packed(images, found, cache)
    store = ImageStore(tmp_path / "images.h5")
    assert len(store) == 40
    assert len(list(cache.glob("pixels/*/shards/*.h5"))) == 1
    for row, path in enumerate(found.manifest.paths):
        data = (images / path).read_bytes()
        np.testing.assert_array_equal(store[row], decode_input(data, ImageParams(size=SIZE_PX)))


def test_the_same_bytes_whether_pixels_are_kept_or_not(images: Path, tmp_path: Path) -> None:
    kept, empty = tmp_path / "kept", tmp_path / "empty"
    found = ingested(images, kept)
    first = packed(images, found, kept)
    extracted(images, found, extractor(kept, size=SIZE_PX))
    features = (tmp_path / "features.h5").read_bytes()
    assert packed(images, found, empty) == first
    extracted(images, found, extractor(empty, size=SIZE_PX))
    assert (tmp_path / "features.h5").read_bytes() == features
    assert not list(empty.glob("pixels/*/shards/*.h5"))


def test_damaged_pixels_are_decoded_again(
    images: Path, tmp_path: Path, decoded: list[bytes]
) -> None:
    cache = tmp_path / "cache"
    found = ingested(images, cache)
    first = packed(images, found, cache)
    (shard,) = cache.glob("pixels/*/shards/*.h5")
    changed = bytearray(shard.read_bytes())
    changed[-100] ^= 1
    shard.write_bytes(changed)
    decoded.clear()
    with pytest.warns(UserWarning, match="its checksum does not match"):
        assert packed(images, found, cache) == first
    assert len(decoded) == 40
    # ingest fills what is missing.
    assert ingested(images, cache).n_decoded == 40
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert packed(images, found, cache) == first
    assert len(decoded) == 80


def test_where_they_cannot_be_kept_it_goes_on(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    first = packed(images, ingested(images, cache), cache)
    with small_disk(tmp_path / "full" / "pixels", 40_000):
        found = ingested(images, tmp_path / "full")
        told = capsys.readouterr().err
        assert told.count("pixels are not kept: ") == 1
        assert "No space left on device" in told
        assert packed(images, found, tmp_path / "full") == first
    (tmp_path / "file").write_text("no folder")
    found = ingested(images, tmp_path / "file")
    assert "pixels are not kept: the cache must be writable" in capsys.readouterr().err
    assert packed(images, found, tmp_path / "file") == first
    with read_only(cache):
        assert ingested(images, cache).n_decoded == 0
        assert packed(images, found, cache) == first


def test_an_image_that_changed_since_is_refused(images: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    found = ingested(images, cache)
    path = images / found.manifest.paths[3]
    path.write_bytes(path.read_bytes() + b"x")
    packed(images, found, cache)  # its pixels are those that the manifest lists
    with pytest.raises(DataError, match="has changed since"):
        packed(images, found, tmp_path / "another")


def test_a_picture_that_changes_while_it_is_read_gets_no_row(images: Path) -> None:
    paths = sorted(images.glob("*/*"))[:3]
    image = ImageParams(size=SIZE_PX)
    pictures = PicturePixels(paths, image)
    data = paths[1].read_bytes()
    expected = decode_input(data, image)
    np.testing.assert_array_equal(pictures.read("1", pictures.sha256[1]), expected)
    assert pictures.sha256[1] == hashlib.sha256(data).hexdigest()
    paths[1].write_bytes(paths[0].read_bytes())
    with pytest.raises(DataError, match=r"image 1 \(.*\): it must not change while it is read"):
        pictures.read("1", pictures.sha256[1])


def test_pixels_hash_by_their_shape_too() -> None:
    pixels = np.arange(24, dtype=np.uint8)
    one, other = pixels.reshape(2, 4, 3), pixels.reshape(4, 2, 3)
    hashes = PicturePixels([one, other, one.copy()], ImageParams(size=SIZE_PX)).sha256
    assert hashes[0] == hashes[2] != hashes[1]
