"""`headstart inspect FILE`: what an `.h5` of this project is and holds."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from headstart.common.errors import FormatError
from headstart.features.h5_contents import inspect_h5
from tests.cache.test_row_cache import filled
from tests.features.samples import extractor
from tests.features.test_feature_store import some_features, write


def test_features(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    write(path, some_features(12, 2, 5))
    text = inspect_h5(path).as_text()
    assert text.startswith(f"{path}: bottleneck features (headstart-features, version 2), ")
    assert "recipe.backbone: vgg16" in text
    row = next(line for line in text.splitlines() if line.startswith("  features"))
    assert " ".join(row.split()) == "features/small/last float32 12 × 2 × 5 480 B contiguous"
    assert "images by split: test 3, train 6, validation 3" in text
    assert "images by class: cat " in text


def test_a_shard(tmp_path: Path) -> None:
    filled(tmp_path, range(4))
    (path,) = (tmp_path / "shards").glob("*.h5")
    text = inspect_h5(path).as_text()
    assert "one shard of the row cache (headstart-feature-shard, version 1)" in text
    assert "provenance.processor: this" in text


def test_images(tmp_path: Path) -> None:
    path = tmp_path / "images.h5"
    with h5py.File(path, "w") as file:
        file.attrs["format"], file.attrs["format_version"] = "headstart-images", 1
        file.attrs["classes"] = json.dumps(["cat", "dog"])
        file["images"] = np.zeros((3, 8, 8, 3), np.uint8)
        file["label_ids"] = np.array([0, 1, 1])
        file["split"] = np.array([b"train", b"train", b"validation"])
    text = inspect_h5(path).as_text()
    assert "decoded images (headstart-images, version 1)" in text
    assert "images by class: cat 1, dog 2" in text
    assert "images by split: train 2, validation 1" in text


def test_a_encoder(cache_root: Path) -> None:
    text = inspect_h5(extractor(cache_root).frozen().h5).as_text()
    assert "a Keras model (.h5)" in text
    assert "input: uint8 [None, 32, 32, 3]" in text
    assert "features (Concatenate)" in text
    assert "parameters: 3,413,024" in text


def test_a_file_of_someone_else(tmp_path: Path) -> None:
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        file["data"] = np.zeros(3)
    with pytest.raises(FormatError, match=r"other\.h5 must be a file of this project, but is not"):
        inspect_h5(path)


def test_a_file_that_is_no_hdf5_file(tmp_path: Path) -> None:
    path = tmp_path / "text.h5"
    path.write_text("hello")
    with pytest.raises(FormatError, match=r"must be a whole HDF5 file.*: give a features, images"):
        inspect_h5(path)
    with pytest.raises(FormatError, match="must exist"):
        inspect_h5(tmp_path / "lost.h5")
