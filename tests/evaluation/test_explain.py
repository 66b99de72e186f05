"""Grad-CAM, and explaining single images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.font_manager import findSystemFonts
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray
from PIL import Image

from headstart.common.errors import TrainingError
from headstart.evaluation.explain import GradCam, explain_files, overlay
from headstart.heads.fitted import FittedHead
from headstart.models.assemble import assemble
from headstart.models.model_file import LoadedModel
from tests.models.conftest import IMAGE, make_encoder, make_head, saved


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedModel:
    """A small model."""
    model = assemble(make_encoder(), [make_head()], 1.0)
    classes = ["cat", "dog", "a class with a name that is far too long for the room it has"]
    metadata = {"classes": classes, "image": IMAGE.model_dump(mode="json")}
    return saved(tmp_path / "model.h5", model, metadata)


def test_each_image_gets_its_classes_and_a_picture(loaded: LoadedModel, tmp_path: Path) -> None:
    paths = []
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "same name.png")
        pixels = np.random.default_rng(len(paths)).integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(paths[-1])
    found = list(explain_files(loaded, [*paths, paths[0]], tmp_path / "out", top=2))
    assert [len(one.top) for one in found] == [2, 2, 2]
    names = [one.picture.name for one in found if one.picture]
    assert names == ["x-same name.png", "y-same name.png", "x-same name-2.png"]
    for one in found:
        assert one.top[0][1] >= one.top[1][1] > 0
        assert one.picture is not None
        with Image.open(one.picture) as sheet:
            assert sheet.width == 688
            assert 0.8 < sheet.width / sheet.height < 1.8


def test_a_file_that_is_no_image_gets_a_reason_and_the_rest_go_on(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
    paths = [tmp_path / "notes.txt", tmp_path / "missing.png", tmp_path / "red.png"]
    found = list(explain_files(loaded, paths, tmp_path / "out"))
    assert [bool(one.reason) for one in found] == [True, True, False]
    assert found[0].picture is None
    assert len(list((tmp_path / "out").iterdir())) == 1
    (limited,) = explain_files(loaded, paths[2:], tmp_path / "out", max_pixels=399)
    assert "399" in limited.reason.replace(",", "")


def test_names_of_other_scripts_are_drawn_in_a_font_that_has_them(tmp_path: Path) -> None:
    model = assemble(make_encoder(), [make_head(n_classes=2)], 1.0)
    sheets = []
    for classes in (["大熊猫", "小熊"], ["北极狐", "小狗"]):
        metadata = {"classes": classes, "image": IMAGE.model_dump(mode="json")}
        Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
        loaded = saved(tmp_path / "model.h5", model, metadata)
        (one,) = explain_files(loaded, [tmp_path / "red.png"], tmp_path / classes[0])
        assert one.picture is not None
        with Image.open(one.picture) as sheet:
            sheets.append(np.asarray(sheet))
    if not _has_a_font("大熊猫小北极狐狗"):
        pytest.skip("no font with Chinese letters on this machine")
    assert (sheets[0] != sheets[1]).any(), "empty boxes look alike"


def _has_a_font(text: str) -> bool:
    return any(
        {ord(letter) for letter in text} <= FT2Font(path).get_charmap().keys()
        for path in findSystemFonts()
        if path.endswith((".ttf", ".otf", ".ttc"))
    )


def test_heat_of_a_linear_head_is_its_weighted_map(
    encoder: Any, head: Callable[..., FittedHead], pixels: NDArray[np.uint8]
) -> None:
    """With average pooling and a linear head Grad-CAM is CAM: the class's kernel on the map."""
    import keras

    fitted = head(hidden_layers=0, normalisation="none")
    model = assemble(encoder, [fitted], 2.0)
    class_ids = np.arange(len(pixels)) % 3
    heat = GradCam(model).heat(pixels, class_ids)
    maps = np.asarray(
        keras.Model(model.input, model.get_layer("features").input)(pixels), np.float32
    )
    kernels = fitted.layers[0].kernel.T[class_ids]
    coarse = np.maximum(np.einsum("nhwc,nc->nhw", maps, kernels), 0)
    assert heat.shape == (20, 16, 16)
    assert heat.min() >= 0
    assert heat.max() <= 1
    peaks = coarse.reshape(20, -1).argmax(axis=1)
    step = 16 / maps.shape[1]
    for one, peak in zip(heat, peaks, strict=True):
        row, column = np.unravel_index(peak, maps.shape[1:3])
        assert one[int((row + 0.5) * step), int((column + 0.5) * step)] > 0.6


def test_heat_needs_a_map(head: Callable[..., FittedHead]) -> None:
    import keras

    vector = keras.Input((12,), name="image")
    features = keras.layers.Flatten(name="features")(vector)
    model = assemble(keras.Model(vector, features), [head()], 1.0)
    with pytest.raises(TrainingError, match=r"vectors of shape \(12,\): choose a layer that"):
        GradCam(model)


def test_heat_is_laid_over_a_picture() -> None:
    grey = np.full((8, 8, 3), 120, np.uint8)
    hot = np.zeros((8, 8), np.float32)
    hot[0, 0] = 1
    shown = overlay(grey, hot)
    assert (shown[4, 4] == 120).all()
    assert (shown[0, 0] != 120).any()
