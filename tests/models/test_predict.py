"""Predicting image files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.models.assemble import assemble
from headstart.models.model_file import LoadedModel
from headstart.models.predict import predict_files
from tests.models.conftest import IMAGE, SIZE, make_encoder, make_head


@pytest.fixture
def loaded() -> LoadedModel:
    """A small model with what its file would say."""
    model = assemble(make_encoder(), [make_head()], 1.0)
    metadata = {"classes": ["a", "b", "c"], "image": IMAGE.model_dump(mode="json")}
    return LoadedModel(model, metadata)


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
    together = [p.probabilities for p in predict_files(loaded, paths)]
    backwards = [p.probabilities for p in predict_files(loaded, paths[::-1])][::-1]
    for path, *expected in zip(paths, together, backwards, strict=True):
        (alone,) = predict_files(loaded, [path])
        for other in expected:
            np.testing.assert_array_equal(other, alone.probabilities)


def test_only_one_batch_size_is_computed(loaded: LoadedModel, tmp_path: Path) -> None:
    sizes: list[int] = []
    whole = loaded.model.predict_on_batch

    def noted(pixels: np.ndarray) -> np.ndarray:
        sizes.append(len(pixels))
        return np.asarray(whole(pixels))

    loaded.model.predict_on_batch = noted
    assert len(list(predict_files(loaded, _pictures(tmp_path, 35)))) == 35
    assert sizes == [1] * 35


def test_what_is_too_large_or_no_image_gets_a_reason(loaded: LoadedModel, tmp_path: Path) -> None:
    paths = _pictures(tmp_path, 1)
    (tmp_path / "notes.txt").write_text("no image")
    found = list(predict_files(loaded, [tmp_path / "notes.txt", *paths]))
    assert [one.probabilities is None for one in found] == [True, False]
    (limited,) = predict_files(loaded, paths, max_pixels=SIZE * SIZE - 1)
    assert str(SIZE * SIZE - 1) in limited.reason
