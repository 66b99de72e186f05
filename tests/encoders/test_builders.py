"""Encoders equal the networks they claim to be, and survive `.h5` in a fresh process."""

import hashlib
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from headstart.common.errors import ParamsError, WeightsError
from headstart.encoders.builders import ENCODERS, bare_network, build, random_tensors
from headstart.encoders.frozen import FrozenModel
from headstart.encoders.runtimes import open_forward
from headstart.encoders.weights import locate_weights
from headstart.encoders.weights_files import read_pth, read_tensors
from headstart.images.decode import decode_input
from headstart.params.extract import ExtractParams
from headstart.params.image import ImageParams
from tests.encoders.package_index import needs_package_index
from tests.features.samples import pixels


def _quick(*names: str) -> list[Any]:
    """All encoders as test parameters; those not named only in the slow suite."""
    slow = pytest.mark.slow
    # The large ones of a family are as the small ones, in gigabytes.
    some = [name for name in ENCODERS if "-large" not in name]
    return [pytest.param(name, marks=[] if name in names else slow) for name in some]


OF_KERAS = {
    "vgg16": ("vgg16", "VGG16"),
    "vgg19": ("vgg19", "VGG19"),
    **{f"resnet{n}": ("resnet", f"ResNet{n}") for n in (50, 101, 152)},
    **{f"resnet{n}v2": ("resnet_v2", f"ResNet{n}V2") for n in (50, 101, 152)},
    **{f"densenet{n}": ("densenet", f"DenseNet{n}") for n in (121, 169, 201)},
    **{f"efficientnetb{n}": ("efficientnet", f"EfficientNetB{n}") for n in range(8)},
    **{
        f"efficientnetv2{n.lower()}": ("efficientnet_v2", f"EfficientNetV2{n}")
        for n in ("B0", "B1", "B2", "B3", "S", "M", "L")
    },
    "mobilenet": ("mobilenet", "MobileNet"),
    **{
        f"mobilenetv3{size.lower()}": ("mobilenet_v3", f"MobileNetV3{size}")
        for size in ("Large", "Small")
    },
    **{f"nasnet{size.lower()}": ("nasnet", f"NASNet{size}") for size in ("Mobile", "Large")},
    "mobilenetv2": ("mobilenet_v2", "MobileNetV2"),
    "inceptionv3": ("inception_v3", "InceptionV3"),
    "xception": ("xception", "Xception"),
}


def squares(size: int, n_images: int = 2) -> NDArray[np.uint8]:
    return np.stack([pixels(number, size, size) for number in range(n_images)])


def of_random_weights(name: str) -> tuple[Any, int]:
    size = ENCODERS[name].least_size_px
    extract = ExtractParams(encoders=name, weights="random")
    return build(extract, ImageParams(size=size)), size


def relative_difference(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def application(name: str, size: int, **options: Any) -> tuple[Any, Any]:
    module, builder = OF_KERAS[name]
    applications = importlib.import_module(f"keras.applications.{module}")
    shape = (size, size, 3)
    network = getattr(keras.applications, builder)(
        include_top=False, pooling="avg", input_shape=shape, **options
    )
    return network, applications.preprocess_input


def with_weights(model: Any) -> list[Any]:
    return [
        layer for layer in model.layers if layer.weights and not layer.name.startswith("preproc")
    ]


@pytest.mark.parametrize("name", [p for p in _quick("mobilenetv2") if p.values[0] in OF_KERAS])
def test_it_equals_the_application_of_keras(name: str) -> None:
    ours, size = of_random_weights(name)
    theirs, preprocess = application(name, size, weights=None)
    for mine, other in zip(with_weights(ours), with_weights(theirs), strict=True):
        other.set_weights(mine.get_weights())
    images = squares(size)
    wanted = np.asarray(theirs(preprocess(images.astype(np.float32))))
    found = np.asarray(ours(images))
    assert found.shape == (2, sum(ENCODERS[name].blocks.values()))
    assert np.ptp(found) > 0
    assert relative_difference(found[:, : wanted.shape[1]], wanted) < 1e-5


def test_vgg16_with_its_imagenet_weights_equals_the_application(assets: Path) -> None:
    path = assets / "weights" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    extract = ExtractParams(encoders="vgg16", weights=str(path), weights_sha256=digest)
    ours = build(extract, ImageParams(size=64))
    theirs, preprocess = application("vgg16", 64, weights=str(path))
    images = squares(64)
    wanted = np.asarray(theirs(preprocess(images.astype(np.float32))))
    assert relative_difference(np.asarray(ours(images))[:, :512], wanted) < 1e-5


@pytest.mark.slow
def test_efficientnetb0_is_repaired_as_keras_repairs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, _ = application("efficientnetb0", 64, weights=None)
    tensors = random_tensors(network)
    normalization = next(name for name in tensors if name.startswith("normalization"))
    tensors[normalization][:2] = [
        np.array([0.485, 0.456, 0.406], np.float32),
        np.array([0.229, 0.224, 0.225], np.float32) ** 2,
    ]
    for layer in with_weights(network):
        layer.set_weights(tensors[layer.name])
    network.get_layer(normalization).finalize_state()
    path = tmp_path / "b0.weights.h5"
    network.save_weights(path)
    from keras.src.applications import efficientnet

    monkeypatch.setattr(efficientnet.file_utils, "get_file", lambda *_, **__: str(path))
    theirs, _ = application("efficientnetb0", 64, weights="imagenet")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    extract = ExtractParams(encoders="efficientnetb0", weights=str(path), weights_sha256=digest)
    images = squares(64)
    ours = build(extract, ImageParams(size=64))
    found = np.asarray(ours(images))
    last_map = found[:, : ENCODERS["efficientnetb0"].blocks["top_activation"]]
    assert relative_difference(last_map, np.asarray(theirs(images.astype(np.float32)))) < 1e-5
    FrozenModel(tmp_path, lambda: ours).load()
    again = FrozenModel(tmp_path, lambda: None).load()
    np.testing.assert_array_equal(np.asarray(again(images)), found)


CLASSES = {"cats": range(281, 288), "dogs": range(151, 269), "panda": (387, 388)}


@pytest.mark.parametrize(
    "name",
    ["efficientnet-lite0"]
    + [pytest.param(f"efficientnet-lite{n}", marks=pytest.mark.slow) for n in (1, 2)],
)
def test_lite_knows_what_is_in_photos(assets: Path, name: str) -> None:
    extract, encoder = ExtractParams(encoders=name), ENCODERS[name]
    if name != "efficientnet-lite0":
        needs_package_index()
    path = locate_weights(extract, encoder.imagenet, Path.cwd())
    state, size = read_pth(path), encoder.default_size_px
    image = ImageParams(size=size)
    model = build(extract, image)
    n_right = 0
    for label, wanted in CLASSES.items():
        photos = sorted((assets / "animals" / label).iterdir())[:8]
        images = np.stack([decode_input(photo.read_bytes(), image) for photo in photos])
        logits = np.asarray(model(images))[:, :1280] @ state["_fc.weight"].T + state["_fc.bias"]
        n_right += int(np.isin(logits.argmax(axis=1), list(wanted)).sum())
    assert n_right >= 21


FRESH = """
import json, sys, keras, numpy as np
model = keras.models.load_model(sys.argv[1], compile=False)
found = np.asarray(model(np.load(sys.argv[2])))
np.save(sys.argv[3], found)
names = [layer.name for layer in model.layers]
print(json.dumps([names, "headstart" in sys.modules]))
"""


@pytest.mark.parametrize("name", _quick("efficientnet-lite0"))
def test_it_survives_h5_in_a_fresh_process(name: str, tmp_path: Path) -> None:
    model, size = of_random_weights(name)
    images = squares(size)
    np.save(tmp_path / "images.npy", images)
    frozen = FrozenModel(tmp_path, lambda: model)
    frozen.load()
    arguments = [str(frozen.h5), str(tmp_path / "images.npy"), str(tmp_path / "found.npy")]
    answer = subprocess.run(
        [sys.executable, "-c", FRESH, *arguments], check=True, capture_output=True, text=True
    )
    names, knows_us = json.loads(answer.stdout)
    assert (names[0], names[-1], knows_us) == ("image", "features", False)
    assert len(set(names)) == len(names)
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), np.asarray(model(images)))


@pytest.mark.parametrize("name", _quick("efficientnet-lite0"))
def test_two_builds_are_saved_with_the_same_bytes(name: str, tmp_path: Path) -> None:
    for number in range(2):
        model, _ = of_random_weights(name)
        FrozenModel(tmp_path / str(number), lambda model=model: model).load()  # type: ignore[misc]
    first, second = (tmp_path / str(number) / "backbone.h5" for number in range(2))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("form", ["legacy.h5", "some.weights.h5", "whole.keras"])
def test_weights_are_read_from_every_format_of_keras(form: str, tmp_path: Path) -> None:
    encoder = ENCODERS["efficientnet-lite0"]
    network = bare_network(encoder, 32)
    wanted = random_tensors(network)
    for layer in with_weights(network):
        layer.set_weights(wanted[layer.name])
    path = tmp_path / form
    save = network.save_weights if ".weights." in form else network.save
    save(path)
    found = read_tensors(path, bare=lambda: bare_network(encoder, 32))
    assert found.keys() == wanted.keys()
    for name, tensors in wanted.items():
        for mine, other in zip(found[name], tensors, strict=True):
            np.testing.assert_array_equal(mine, other)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    other = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Conv2D(4, 3, name="conv")])
    other.save(tmp_path / "other.keras")
    other.save_weights(tmp_path / "other.weights.h5")
    for name in ("other.keras", "other.weights.h5"):
        path = tmp_path / name
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        extract = ExtractParams(weights=str(path), weights_sha256=digest)
        with pytest.raises(WeightsError, match=r"weights of|the weights file must fit"):
            build(extract, ImageParams(size=32))


@pytest.mark.parametrize(
    ("layer", "pooling", "dim"),
    [
        ("block5_pool", "flatten", 2 * 2 * 512),
        ("block5_conv1", "max", 512),
        ("block3_conv2", "avg", 256),
        (None, "flatten", 2 * 2 * 512),
    ],
)
def test_any_named_layer_and_pooling(layer: str | None, pooling: Any, dim: int) -> None:
    extract = ExtractParams(
        encoders="vgg16", weights="random", layers=layer and (layer,), pooling=pooling
    )
    model = build(extract, ImageParams(size=64))
    found = np.asarray(model(squares(64)))
    assert found.shape == (2, dim)
    if pooling == "flatten":
        return
    whole = build(extract.model_copy(update={"pooling": "flatten"}), ImageParams(size=64))
    maps = np.asarray(whole(squares(64))).reshape(2, -1, dim)
    pooled = maps.mean(axis=1) if pooling == "avg" else maps.max(axis=1)
    np.testing.assert_allclose(found, pooled, rtol=1e-5, atol=1e-4)


def test_an_unknown_layer_is_refused_with_the_nearest() -> None:
    extract = ExtractParams(encoders="vgg16", weights="random", layers=("block5_conv9",))
    message = r"must name layers of vgg16, .* none named block5_conv9: nearest are block5_conv"
    with pytest.raises(ParamsError, match=message):
        build(extract, ImageParams(size=32))


def test_a_frozen_encoder_has_nothing_to_train() -> None:
    model, _ = of_random_weights("mobilenetv2")
    assert model.trainable_weights == []


@pytest.mark.parametrize("name", _quick("efficientnet-lite0"))
def test_the_exported_network_agrees(name: str, tmp_path: Path) -> None:
    model, size = of_random_weights(name)
    frozen = FrozenModel(tmp_path, lambda: model)
    found = open_forward(frozen, "onnxruntime", "float32", cores=1)(squares(size))
    assert relative_difference(found, np.asarray(model(squares(size)))) < 1e-4
