"""A model on a labelled folder of one's own."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.common.errors import DataError
from headstart.evaluation.evaluate_folder import evaluate_folder
from headstart.models.assemble import assemble
from headstart.models.model_file import LoadedModel
from headstart.models.predict import predict_files
from headstart.models.predictions import read_predictions
from tests.models.conftest import IMAGE, SIZE, make_encoder, make_head, saved

CLASSES = ("ant", "bee", "cat")


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedModel:
    """A small model."""
    metadata = {"classes": list(CLASSES), "image": IMAGE.model_dump(mode="json")}
    return saved(tmp_path / "model.h5", assemble(make_encoder(), [make_head()], 1.0), metadata)


def pictures(folder: Path, n: int, seed: int = 0) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    paths = [folder / f"{number}.png" for number in range(n)]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(path)
    return paths


def test_it_counts_what_the_model_gets_right(loaded: LoadedModel, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    images = [path for i, name in enumerate(CLASSES) for path in pictures(folder / name, 8, i)]
    pictures(folder / "zebra", 3, 9)
    (folder / "ant" / "broken.png").write_bytes(b"\x89PNG no image")
    found = evaluate_folder(loaded, folder, n_bootstrap=50)
    predicted = [one.top(1)[0][0] for one in predict_files(loaded, images)]
    right = np.mean(
        [path.parent.name == name for path, name in zip(images, predicted, strict=True)]
    )
    assert found.scores["accuracy"] == pytest.approx(right)
    assert found.intervals["accuracy"].low <= right <= found.intervals["accuracy"].high
    assert list(found.unreadable) == ["ant/broken.png"]
    assert {label: len(values) for label, values in found.unknown.items()} == {"zebra": 3}
    text = found.as_text()
    assert f"Accuracy   {100 * right:.1f} % (95 % interval" in text
    assert "on 24 images" in text
    assert "Not a class of the model: zebra (3)" in text
    assert "ant/broken.png: " in text
    assert max(map(len, text.splitlines())) <= 120
    found.write(tmp_path / "out")
    assert json.loads((tmp_path / "out/metrics.json").read_text())["n"] == 24
    again = read_predictions(tmp_path / "out/predictions.csv", "test")
    np.testing.assert_array_equal(again.label_ids, found.test.label_ids)


def test_of_a_folder_with_splits_the_test_images_alone(loaded: LoadedModel, tmp_path: Path) -> None:
    for split, n in (("train", 5), ("test", 3)):
        for name in CLASSES:
            pictures(tmp_path / "own" / split / name, n, n)
    found = evaluate_folder(loaded, tmp_path / "own", n_bootstrap=50)
    assert len(found.test) == 9
    assert all(path.startswith("test/") for path in found.test.paths)


def test_other_classes_alone_are_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    for name in ("dog", "emu"):
        pictures(tmp_path / "own" / name, 2)
    with pytest.raises(
        DataError, match=r"knows, ant, bee, cat, but has dog, emu: name its folders"
    ):
        evaluate_folder(loaded, tmp_path / "own")
    for name in ("ant", "bee"):
        (tmp_path / "bad" / name).mkdir(parents=True)
        (tmp_path / "bad" / name / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"images of known classes, but got none: ant/a\.png: "):
        evaluate_folder(loaded, tmp_path / "bad")


def test_a_folder_around_it_and_a_single_class(loaded: LoadedModel, tmp_path: Path) -> None:
    pictures(tmp_path / "own" / "photos" / "bee", 4)
    found = evaluate_folder(loaded, tmp_path / "own" / "photos", n_bootstrap=50)
    assert len(found.test) == 4
    for name in CLASSES:
        pictures(tmp_path / "around" / "photos" / name, 2)
    assert len(evaluate_folder(loaded, tmp_path / "around", n_bootstrap=50).test) == 6
    (tmp_path / "photos.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"on a folder of images, but .*photos\.zip is none"):
        evaluate_folder(loaded, tmp_path / "photos.zip")
