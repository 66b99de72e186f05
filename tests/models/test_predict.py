"""Predicting image files."""

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.models.assemble import assemble
from headstart.models.model_file import LoadedModel
from headstart.models.pixels import predict_batch
from headstart.models.predict import predict_files
from tests.models.conftest import IMAGE, SIZE, compute_outputs, make_encoder, make_head, saved


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedModel:
    """A small model."""
    model = assemble(make_encoder(), [make_head()], 1.0)
    metadata = {"classes": ["a", "b", "c"], "image": IMAGE.model_dump(mode="json")}
    return saved(tmp_path / "model.h5", model, metadata)


def _pictures(folder: Path, count: int) -> list[Path]:
    generator = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(count)]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(path)
    return paths


def test_an_image_gets_the_same_bytes_whatever_shares_its_batch(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    paths = _pictures(tmp_path, 19)
    together = [p.answer.probabilities for p in predict_files(loaded, paths)]
    backwards = [p.answer.probabilities for p in predict_files(loaded, paths[::-1])][::-1]
    for path, *expected in zip(paths, together, backwards, strict=True):
        (alone,) = predict_files(loaded, [path])
        for other in expected:
            np.testing.assert_array_equal(other, alone.answer.probabilities)


def test_only_one_batch_size_is_computed(loaded: LoadedModel) -> None:
    sizes: list[int] = []
    whole = loaded.model.predict_on_batch

    def noted(pixels: np.ndarray) -> np.ndarray:
        sizes.append(len(pixels))
        return np.asarray(whole(pixels))

    loaded.model.predict_on_batch = noted
    assert predict_batch(loaded.model, np.zeros((5, SIZE, SIZE, 3), np.uint8)).shape == (5, 3)
    assert sizes == [1] * 5


def test_what_is_served_is_what_keras_says(loaded: LoadedModel, tmp_path: Path) -> None:
    paths = _pictures(tmp_path, 9)
    direct = compute_outputs(loaded.model, paths, IMAGE)
    for expected, one in zip(direct, predict_files(loaded, paths), strict=True):
        assert one.answer.probabilities is not None
        np.testing.assert_allclose(one.answer.probabilities, expected, atol=1e-6)


def test_files_are_read_in_bounded_number_ahead(loaded: LoadedModel, tmp_path: Path) -> None:
    taken = []

    def endless() -> Iterator[Path]:
        for path in itertools.cycle(_pictures(tmp_path, 3)):
            taken.append(path)
            yield path

    answers = predict_files(loaded, endless())
    paths = [next(answers).path for _ in range(50)]
    assert paths == taken[:50]
    assert len(taken) <= 50 + 4 * loaded.inference.workers


def test_predicting_imports_neither_keras_nor_tensorflow(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    (picture,) = _pictures(tmp_path, 1)
    code = f"""
import sys
from pathlib import Path
from headstart.models.model_file import load_model
from headstart.models.predict import predict_files
(one,) = predict_files(load_model(Path({str(loaded.path)!r})), [Path({str(picture)!r})])
print(one.answer.probabilities.shape)
print({{"keras", "tensorflow", "mlflow", "sklearn", "scipy"}} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["(3,)", "set()"]


def test_what_is_too_large_or_no_image_gets_a_reason(loaded: LoadedModel, tmp_path: Path) -> None:
    paths = _pictures(tmp_path, 1)
    (tmp_path / "notes.txt").write_text("no image")
    found = list(predict_files(loaded, [tmp_path / "notes.txt", *paths]))
    assert [one.answer.probabilities is None for one in found] == [True, False]
    (limited,) = predict_files(loaded, paths, max_pixels=SIZE * SIZE - 1)
    assert str(SIZE * SIZE - 1) in limited.answer.reason
