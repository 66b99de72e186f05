"""Grad-CAM, and explaining single images."""

from collections.abc import Callable
from dataclasses import replace
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
from headstart.models.assemble import assemble, logits_of
from headstart.models.model_file import LoadedModel
from tests.models.conftest import IMAGE, SIZE, make_encoder, make_head, saved

METADATA = {"classes": ["a", "b", "c"], "image": IMAGE.model_dump(mode="json")}


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
    encoder: Any, head: Callable[..., FittedHead], pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    """With average pooling and a linear head Grad-CAM is CAM: the class's kernel on the map."""
    import keras

    fitted = head(hidden_layers=0, normalisation="none")
    model = assemble(encoder, [fitted], 2.0)
    class_ids = np.arange(len(pixels)) % 3
    heat = GradCam(saved(tmp_path / "model.h5", model, METADATA)).heat(pixels, class_ids)
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


def of_vectors(*, with_map: bool) -> Any:
    """An encoder whose features are a vector, or a vector beside a pooled map."""
    import keras

    layers = keras.layers
    keras.utils.set_random_seed(0)
    image = keras.Input((SIZE, SIZE, 3), dtype="uint8", name="image")
    values = layers.Rescaling(1 / 128, -1.0, name="preprocess_rescale")(image)
    values = layers.Conv2D(6, 3, strides=2, name="conv")(values)
    pooled = layers.GlobalAveragePooling2D(name="features_conv")(values)
    vector = layers.Dense(6 if with_map else 12, name="token")(pooled)
    if not with_map:
        return keras.Model(image, layers.Flatten(name="features")(vector))
    blocks = [layers.Flatten(name="features_token")(vector), pooled]
    return keras.Model(image, layers.Concatenate(name="features")(blocks))


def test_heat_needs_a_map(head: Callable[..., FittedHead], tmp_path: Path) -> None:
    model = assemble(of_vectors(with_map=False), [head()], 1.0)
    with pytest.raises(TrainingError, match=r"vectors of shape \(12,\): choose a layer that"):
        GradCam(saved(tmp_path / "model.h5", model, METADATA))


@pytest.mark.parametrize("pooling", ["avg", "max", "flatten", "beside a vector"])
@pytest.mark.parametrize("fields", [{}, {"hidden_layers": 2, "normalisation": "layer_norm"}])
def test_heat_is_that_of_gradients(
    head: Callable[..., FittedHead],
    pixels: NDArray[np.uint8],
    tmp_path: Path,
    fields: dict[str, Any],
    pooling: str,
) -> None:
    """Grad-CAM by its definition, with TensorFlow's gradients."""
    import keras
    import tensorflow as tf

    encoder = of_vectors(with_map=True)
    if pooling != "beside a vector":
        layers = keras.layers
        kinds = {"avg": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D}
        last = encoder.get_layer("conv").output
        pooled = kinds.get(pooling, layers.Flatten)(name="features")(last)
        encoder = keras.Model(encoder.input, pooled)
    fitted = resized(head(activation="tanh", **fields), encoder.output.shape[-1])
    model = assemble(encoder, [fitted], 2.0)
    class_ids = np.arange(len(pixels)) % 3
    # As large as the map, so that nothing is interpolated on the way.
    found = GradCam(saved(tmp_path / "model.h5", model, METADATA)).heat(pixels, class_ids)
    both = keras.Model(model.input, [model.get_layer("conv").output, model.output])
    maps = tf.Variable(both(pixels)[0])
    ends = keras.Model(model.get_layer("conv").output, logits_of(model))
    with tf.GradientTape() as tape:
        chosen = tf.reduce_sum(ends(maps) * np.eye(3, dtype=np.float32)[class_ids])
    slopes = np.asarray(tape.gradient(chosen, maps))
    if pooling == "beside a vector":
        # The vector is made of the map, which the sum over maps leaves out.
        inputs = [model.get_layer(f"features_{name}").output for name in ("token", "conv")]
        blocks = [tf.Variable(one) for one in keras.Model(model.input, inputs)(pixels)]
        ends = keras.Model(inputs, logits_of(model))
        with tf.GradientTape() as tape:
            chosen = tf.reduce_sum(ends(blocks) * np.eye(3, dtype=np.float32)[class_ids])
        slopes = np.asarray(tape.gradient(chosen, blocks[1]))[:, None, None, :]
    weights = slopes.mean(axis=(1, 2), keepdims=True)
    coarse = np.maximum((weights * np.asarray(maps)).sum(axis=-1), 0)
    for one, expected in zip(found, coarse, strict=True):
        large = Image.fromarray(expected).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        wanted = np.maximum(np.asarray(large), 0)
        np.testing.assert_allclose(one, wanted / max(wanted.max(), 1e-12), atol=0.02)


def resized(head: FittedHead, width: int) -> FittedHead:
    """The same head for features of another width, without standardising them."""
    first, *others = head.layers
    kernel = np.random.default_rng(0).normal(0, 0.3, (width, first.kernel.shape[1]))
    layers = (replace(first, kernel=kernel.astype(np.float32)), *others)
    normalisation = "none" if head.mean is not None else head.config.normalisation
    config = head.config.model_copy(update={"normalisation": normalisation})
    return replace(head, config=config, layers=layers, mean=None, variance=None)


def test_heat_is_laid_over_a_picture() -> None:
    grey = np.full((8, 8, 3), 120, np.uint8)
    hot = np.zeros((8, 8), np.float32)
    hot[0, 0] = 1
    shown = overlay(grey, hot)
    assert (shown[4, 4] == 120).all()
    assert (shown[0, 0] != 120).any()
