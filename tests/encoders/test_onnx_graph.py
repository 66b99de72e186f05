"""A graph that is written layer by layer says what Keras says; every encoder: test_builders.py."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime
import pytest

from headstart.common.errors import FormatError, ParamsError
from headstart.encoders.onnx_graph import write_onnx


def difference(model: Any, path: Path) -> float:
    """The largest between Keras and ONNX Runtime, of the largest value."""
    h5 = path.with_suffix(".h5")
    model.save(h5, include_optimizer=False)
    outputs = {"out": model.layers[-1].name, "before": model.layers[-2].name}
    write_onnx(h5, path, outputs=outputs, metadata={"classes": "[]"})
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(0).integers(0, 256, (3, *model.input_shape[1:]), dtype=np.uint8)
    expected = np.asarray(model(pixels))
    (found,) = session.run(["out"], {"image": pixels})
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def with_weights(model: Any) -> Any:
    """Weights that differ everywhere; variances stay positive."""
    chance = np.random.default_rng(1)
    model.set_weights([chance.uniform(0.1, 0.5, w.shape) for w in model.get_weights()])
    return model


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("strides", [1, 2, 3])
@pytest.mark.parametrize("size", [17, 18])
def test_maps_of_any_size_are_padded_as_by_keras(
    tmp_path: Path, size: int, strides: int, padding: str
) -> None:
    layers = keras.layers
    pixels = keras.Input((size, size + 3, 3), dtype="uint8")
    x = layers.Rescaling([1 / 9, 1 / 8, 1 / 7], [-1.0, 0.0, 1.0])(pixels)
    x = layers.ZeroPadding2D(((1, 2), (0, 3)))(x)
    x = layers.Conv2D(6, (3, 2), 1, padding=padding, dilation_rate=2, groups=3)(x)
    x = layers.DepthwiseConv2D(3, strides, padding=padding, depth_multiplier=2)(x)
    x = layers.SeparableConv2D(5, 3, padding=padding, use_bias=False)(x)
    x = layers.BatchNormalization(scale=False)(x)
    side = layers.MaxPooling2D(2, strides, padding=padding)(x)
    other = layers.AveragePooling2D(2, strides, padding=padding)(x)
    x = layers.Add()([side, other, layers.ReLU(0.7)(side)])
    x = layers.Concatenate()([x, other])
    squeezed = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = layers.Multiply()([x, layers.Conv2D(10, 1, activation="sigmoid")(squeezed)])
    flat = [layers.Flatten()(x), layers.GlobalMaxPooling2D()(x)]
    model = with_weights(keras.Model(pixels, layers.Concatenate()(flat)))
    assert difference(model, tmp_path / "a.onnx") < 1e-5


@pytest.mark.parametrize("activation", ["linear", "relu", "gelu", "silu", "tanh", "elu", "relu6"])
def test_heads_of_every_kind(tmp_path: Path, activation: str) -> None:
    layers = keras.layers
    pixels = keras.Input((6, 6, 3), dtype="uint8")
    x = layers.Normalization(mean=[9.0, 8.0, 7.0], variance=[4.0, 5.0, 6.0])(pixels)
    x = layers.Reshape((3, 12, 3))(x)
    features = layers.Reshape((108,))(layers.Activation("swish")(x))
    one = layers.LayerNormalization(center=False, scale=False)(features)
    two = layers.BatchNormalization(epsilon=0.0, center=False)(features)
    branches = [
        layers.Dense(4)(layers.Dropout(0.5)(layers.Dense(8, activation=activation)(branch)))
        for branch in (one, two)
    ]
    logits = layers.Average()(branches)
    cooled = layers.Rescaling(1 / 40)(logits)
    model = with_weights(keras.Model(pixels, layers.Softmax()(cooled)))
    assert difference(model, tmp_path / "a.onnx") < 1e-5
    made = onnx.load(tmp_path / "a.onnx")
    assert {entry.key: entry.value for entry in made.metadata_props} == {"classes": "[]"}
    assert [given.name for given in made.graph.input] == ["image"]


def test_layers_of_other_kinds_are_refused(tmp_path: Path) -> None:
    pixels = keras.Input((4, 4, 3), dtype="uint8")
    x = keras.layers.Rescaling(1.0)(pixels)
    cases = {
        "is a UpSampling2D": keras.layers.UpSampling2D(name="up"),
        "leaky has a slope": keras.layers.ReLU(negative_slope=0.1, name="leaky"),
        "but got softplus": keras.layers.Activation("softplus", name="soft"),
    }
    for says, layer in cases.items():
        keras.Model(pixels, layer(x)).save(tmp_path / "a.h5", include_optimizer=False)
        with pytest.raises(ParamsError, match=says):
            write_onnx(tmp_path / "a.h5", tmp_path / "a.onnx")
    (tmp_path / "b.h5").write_bytes(b"no HDF5")
    with pytest.raises(FormatError, match="a functional model that Keras 3 saved"):
        write_onnx(tmp_path / "b.h5", tmp_path / "b.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "b.h5"]


def test_neither_keras_nor_tensorflow_is_imported(tmp_path: Path) -> None:
    pixels = keras.Input((6, 6, 3), dtype="uint8")
    values = keras.layers.Flatten()(keras.layers.Rescaling(1 / 9)(pixels))
    keras.Model(pixels, keras.layers.Dense(2)(values)).save(tmp_path / "a.h5")
    code = (
        "import sys; from pathlib import Path; "
        "from headstart.encoders.onnx_graph import onnx_model; "
        f"print(len(onnx_model(Path({str(tmp_path / 'a.h5')!r}))) > 100); "
        "print({'keras', 'tensorflow'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "set()"]
