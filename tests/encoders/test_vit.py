"""Vision transformers and ConvNeXt equal their references, which reference.py runs."""

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from keras.src.legacy.saving import legacy_h5_format
from numpy.typing import NDArray
from safetensors.numpy import save_file

from headstart.common.errors import ParamsError, WeightsError
from headstart.common.files import sha256_of_file
from headstart.encoders.builders import bare_network, build, check_size
from headstart.encoders.catalogue import ENCODERS
from headstart.encoders.convnext import ConvNext
from headstart.encoders.vit import Vit, _bicubic
from headstart.encoders.weights_files import read_safetensors
from headstart.params.extract import ExtractParams
from headstart.params.image import ImageParams
from tests.encoders.reference import SIZE, drawn, images

RECORDED: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("reference.json").read_text()
)
_VIT: dict[str, Any] = {"name": "tiny", "width": 8, "depth": 3, "heads": 2, "patch_px": 14}
NETWORKS: dict[str, Vit | ConvNext] = {
    "hf-dinov2": Vit(**_VIT),
    "hf-dinov2-registers": Vit(**_VIT, registers=4),
    "hf-vit": Vit(**_VIT),
    "hf-clip": Vit(**_VIT, first_norm=True, quick=True, epsilon=1e-5),
    "timm-vit": Vit(**_VIT),
    "timm-registers": Vit(**_VIT, registers=4),
    "hf-convnext": ConvNext("tiny", (1, 1, 2, 1), (4, 8, 12, 16)),
    "hf-dinov3-convnext": ConvNext("tiny", (1, 1, 2, 1), (4, 8, 12, 16)),
    "timm-convnext": ConvNext("tiny", (1, 1, 2, 1), (4, 8, 12, 16)),
}


def state_of(name: str) -> dict[str, NDArray[np.float32]]:
    return {key: drawn(key, tuple(s)) for key, s in RECORDED[name]["shapes"].items()}


def with_state(network: Vit | ConvNext, state: dict[str, Any], size: int) -> Any:
    model = network.network(keras.Input((size, size, 3)))
    tensors = network.tensors_from_pytorch(state, size)
    assert set(tensors) == {layer.name for layer in model.layers if layer.weights}
    for name, values in tensors.items():
        model.get_layer(name).set_weights(values)
    return model


@pytest.mark.parametrize("name", RECORDED)
def test_it_equals_what_was_recorded_of_the_reference(name: str) -> None:
    network = NETWORKS[name]
    size = SIZE if isinstance(network, Vit) else 32
    model = with_state(network, state_of(name), size)
    found = model(images(size))
    if not isinstance(found, dict):
        found = {"map": found}
    wanted = RECORDED[name].keys() - {"shapes"}
    assert wanted
    for part in wanted:
        expected = np.array(RECORDED[name][part]).reshape(found[part].shape)
        np.testing.assert_allclose(np.asarray(found[part]), expected, atol=1e-4 * np.ptp(expected))


@pytest.mark.parametrize("name", ["hf-dinov2", "timm-registers", "timm-convnext"])
def test_weights_of_another_network_are_refused(name: str) -> None:
    network, state = NETWORKS[name], state_of(name)
    missing = next(key for key in state if key.endswith(("fc1.bias", "pwconv1.bias")))
    with pytest.raises(WeightsError, match=r"dense1 .*missing: give a file of this network"):
        network.tensors_from_pytorch({k: v for k, v in state.items() if k != missing}, SIZE)
    of_catalogue = ENCODERS["convnext-tiny" if "convnext" in name else "dinov2-small"]
    assert of_catalogue.from_pytorch is not None
    with pytest.raises(WeightsError, match="these are weights of another network"):
        of_catalogue.from_pytorch(state, 224)


def test_weights_of_the_same_depth_and_another_width_kind_or_patch_are_refused() -> None:
    def refused(network: Vit, name: str, says: str) -> None:
        with pytest.raises(WeightsError, match=says):
            network.tensors_from_pytorch(state_of(name), SIZE)

    wider = {**_VIT, "width": 12}
    refused(Vit(**wider), "hf-vit", "must make 12 channels of patches of 14 px, but got the shape")
    refused(Vit(**{**_VIT, "patch_px": 7}), "hf-vit", "must make 8 channels of patches of 7 px")
    refused(Vit(**_VIT), "hf-clip", "must not normalise before the first block")
    refused(Vit(**_VIT, first_norm=True), "hf-vit", "must normalise before the first block")
    distilled = {
        **state_of("hf-vit"),
        "embeddings.position_embeddings": np.zeros((1, 6, 8), np.float32),
    }
    with pytest.raises(
        WeightsError, match=r"positions of a square of patches, but got 5: .*distilled"
    ):
        Vit(**_VIT).tensors_from_pytorch(distilled, SIZE)


def test_registers_are_not_left_out() -> None:
    with pytest.raises(WeightsError, match="0 registers, but got 3 and 4"):
        NETWORKS["hf-dinov2"].tensors_from_pytorch(state_of("hf-dinov2-registers"), SIZE)


def test_the_size_is_a_multiple_of_a_patch() -> None:
    with pytest.raises(
        ParamsError, match=r"a multiple of 14 for dinov2-small.*set it to 224 or 238"
    ):
        check_size(ENCODERS["dinov2-small"], ImageParams(size=230))


@pytest.mark.parametrize(("n_in", "n_out"), [(37, 16), (7, 12), (14, 14), (3, 1)])
def test_positions_of_another_size_keep_what_is_constant(n_in: int, n_out: int) -> None:
    for antialias in (False, True):
        weights = _bicubic(n_in, n_out, antialias=antialias)
        np.testing.assert_allclose(weights.sum(axis=1), 1)
        # Turned around, it is the same.
        np.testing.assert_allclose(weights[::-1, ::-1], weights, atol=1e-12)


def test_a_file_of_hugging_face_becomes_features(tmp_path: Path) -> None:
    """By way of params: a file with its hash, of a network of the catalogue."""
    encoder, state = ENCODERS["deit-tiny"], state_of("hf-vit")
    small = {key: values for key, values in state.items() if ".layer." not in key}
    wide = {"embeddings.cls_token": (1, 1, 192), "embeddings.position_embeddings": (1, 197, 192),
            "embeddings.patch_embeddings.projection.weight": (192, 3, 16, 16)}  # fmt: skip
    shapes = {key: wide.get(key, (192,)) for key in small}
    block = {key.replace(".layer.0.", ".layer.{}."): v for key, v in state.items() if ".0." in key}
    for key, values in block.items():
        sides = tuple({8: 192, 32: 768}[side] for side in values.shape)
        shapes |= {f"vit.{key.format(number)}": sides for number in range(12)}
    path = tmp_path / "model.safetensors"
    save_file({key: drawn(key, shape) / 8 for key, shape in shapes.items()}, path)
    extract = ExtractParams(
        encoders="deit-tiny", weights=str(path), weights_sha256=sha256_of_file(path)
    )
    model = build(extract, ImageParams(size=64))
    assert model.output_shape == (None, sum(encoder.blocks.values()))
    found = np.asarray(model(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)))
    assert np.isfinite(found).all()
    assert np.ptp(found, axis=0).max() > 0.01


def test_a_file_that_is_none_is_told(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x10" + b"0" * 40)
    with pytest.raises(WeightsError, match=r"a \.safetensors weights file must hold tensors"):
        read_safetensors(path)


@pytest.mark.slow
@pytest.mark.skipif(
    "HEADSTART_REFERENCE_PYTHON" not in os.environ,
    reason="HEADSTART_REFERENCE_PYTHON: a Python with torch, transformers and timm",
)
@pytest.mark.parametrize(
    "name",
    ["dinov2-small", "dinov2-base-registers", "deit-small", "vit-base-16", "clip-base-32",
     "convnext-tiny", "convnext-base"],
)  # fmt: skip
def test_it_equals_the_reference_in_full_size(name: str, tmp_path: Path) -> None:
    script = Path(__file__).with_name("reference.py")
    python = os.environ["HEADSTART_REFERENCE_PYTHON"]
    subprocess.run([python, script, "full", tmp_path, name], check=True, capture_output=True)
    expected = np.load(tmp_path / f"{name}.npz")
    encoder = ENCODERS[name]
    assert encoder.from_pytorch is not None
    tensors = encoder.from_pytorch(read_safetensors(tmp_path / f"{name}.safetensors"), 224)
    model = bare_network(encoder, 224)
    for layer in model.layers:
        if layer.weights:
            layer.set_weights(tensors[layer.name])
    found = model(expected["images"])
    if not isinstance(found, dict):
        found = {"map": found}
    for part in set(expected) - {"images"}:
        difference = np.abs(np.asarray(found[part]) - expected[part]).max()
        assert difference < 1e-4 * np.abs(expected[part]).max()


@pytest.mark.slow
def test_convnext_takes_the_weights_files_of_keras(tmp_path: Path) -> None:
    theirs = keras.applications.ConvNeXtTiny(
        include_top=False, weights=None, input_shape=(64, 64, 3), pooling="avg"
    )
    generator = np.random.default_rng(0)
    theirs.set_weights([
        value + generator.normal(0, 0.05, value.shape).astype(np.float32)
        if value.ndim != 1 or value.shape[0] > 3  # the mean and deviation of pixels stay
        else value
        for value in theirs.get_weights()
    ])  # fmt: skip
    path = tmp_path / "convnext_tiny_notop.h5"
    with h5py.File(path, "w") as file:  # as the published ones are
        legacy_h5_format.save_weights_to_hdf5_group(file, theirs)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    extract = ExtractParams(encoders="convnext-tiny", weights=str(path), weights_sha256=digest)
    images = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    ours = build(extract, ImageParams(size=64))
    # Keras's network normalises what it gives once more.
    norm = theirs.layers[-1]
    assert isinstance(norm, keras.layers.LayerNormalization)
    gap = keras.Model(theirs.input, theirs.layers[-2].output)
    wanted = np.asarray(gap(images.astype(np.float32)))
    found = np.asarray(ours(images))[:, : wanted.shape[1]]
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()
