"""One flat graph, and its file."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from headstart.common.errors import FormatError, TrainingError
from headstart.heads.fitted import DenseWeights, FittedHead
from headstart.heads.metrics import softmax
from headstart.models.assemble import assemble, average_linear, logits_model, weighted_mean
from headstart.models.model_file import load_model, read_metadata, save_model
from headstart.models.pixels import hold_to_keras
from tests.models.conftest import IMAGE, make_encoder, make_head

METADATA = {
    "classes": ["cat", "dog", "Ⓟanda"],
    "image": IMAGE.model_dump(mode="json"),
    "temperature": 2.0,
}
KINDS: list[dict[str, Any]] = [
    {"activation": "relu"},
    {"activation": "gelu"},
    {"activation": "silu"},
    {"activation": "tanh"},
    {"hidden_layers": 0},
    {"hidden_layers": 2, "normalisation": "layer_norm"},
    {"normalisation": "none"},
]

Heads = Callable[..., FittedHead]
Pixels = NDArray[np.uint8]


@pytest.mark.parametrize("fields", KINDS, ids=lambda fields: "-".join(map(str, fields.values())))
def test_every_kind_of_head_survives_its_file(
    encoder: Any, head: Heads, pixels: Pixels, tmp_path: Path, fields: dict[str, Any]
) -> None:
    fitted = head(**fields)
    path = tmp_path / "model.h5"
    save_model(path, assemble(encoder, [fitted], 2.0), METADATA)
    loaded = load_model(path)
    expected = softmax(fitted.logits(np.asarray(encoder(pixels))) / 2.0)
    assert np.abs(np.asarray(loaded.model(pixels)) - expected).max() < 1e-6
    assert loaded.metadata == METADATA
    assert loaded.classes == ("cat", "dog", "Ⓟanda")


def test_same_bytes_when_made_and_saved_again(head: Heads, tmp_path: Path) -> None:
    for name in ("a.h5", "b.h5"):
        save_model(tmp_path / name, assemble(make_encoder(), [head(), head(1)], 1.5), METADATA)
    data = (tmp_path / "a.h5").read_bytes()
    assert data == (tmp_path / "b.h5").read_bytes()
    import keras

    assert keras.__version__.encode() not in data
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_loads_with_keras_alone_in_a_fresh_process(
    encoder: Any, head: Heads, pixels: Pixels, tmp_path: Path
) -> None:
    model = assemble(encoder, [head()], 0.7)
    save_model(tmp_path / "model.h5", model, METADATA)
    np.save(tmp_path / "pixels.npy", pixels)
    script = (
        "import sys, json, numpy, keras, h5py\n"
        "model = keras.models.load_model('model.h5', compile=False)\n"
        "numpy.save('probabilities.npy', model(numpy.load('pixels.npy')))\n"
        "print(json.loads(h5py.File('model.h5').attrs['metadata'])['classes'][0])\n"
        "assert not [name for name in sys.modules if name.startswith('headstart')]\n"
    )
    command = [sys.executable, "-c", script]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "cat"
    probabilities = np.load(tmp_path / "probabilities.npy")
    assert np.abs(probabilities - np.asarray(model(pixels))).max() < 1e-5


def test_the_graph_is_flat_and_every_layer_is_named_and_built_in(encoder: Any, head: Heads) -> None:
    import keras

    model = assemble(encoder, [head(), head(1)], 1.0)
    assert not [layer for layer in model.layers if isinstance(layer, keras.Model)]
    assert {type(layer).__module__.split(".")[0] for layer in model.layers} == {"keras"}
    names = [layer.name for layer in model.layers]
    assert names[0] == "image"
    assert names[-1] == "probabilities"
    assert "features" in names
    assert not [name for name in names if name.rsplit("_", 1)[0] == "dense"]


def test_several_heads_are_averaged_in_their_logits(
    encoder: Any, head: Heads, pixels: Pixels
) -> None:
    heads = [head(seed) for seed in range(3)]
    features = np.asarray(encoder(pixels))
    expected = softmax(np.mean([one.logits(features) for one in heads], axis=0) / 3.0)
    model = assemble(encoder, heads, 3.0)
    assert np.abs(np.asarray(model(pixels)) - expected).max() < 1e-6


def test_linear_heads_become_one_with_the_same_answer(
    encoder: Any, head: Heads, pixels: Pixels
) -> None:
    heads = [head(seed, hidden_layers=0) for seed in range(3)]
    one = average_linear(heads)
    assert one is not None
    several = np.asarray(assemble(encoder, heads, 1.0)(pixels))
    assert np.abs(np.asarray(assemble(encoder, [one], 1.0)(pixels)) - several).max() < 1e-6


BLOCKS = {"top": slice(0, 4), "middle": slice(4, 9), "early": slice(9, 12)}


def _of_blocks(head: Heads, layers: str, seed: int, **fields: Any) -> tuple[FittedHead, Any]:
    """A head on some blocks alone, and their columns."""
    columns = np.concatenate([np.arange(12)[BLOCKS[name]] for name in layers.split("+")])
    whole = head(seed=seed, layers=layers, **fields)
    first = DenseWeights(whole.layers[0].kernel[columns], whole.layers[0].bias)
    return replace(
        whole,
        layers=(first, *whole.layers[1:]),
        mean=None if whole.mean is None else whole.mean[columns],
        variance=None if whole.variance is None else whole.variance[columns],
    ), columns


@pytest.mark.parametrize(
    ("fields", "n_heads"),
    [
        ([{"hidden_layers": 0, "normalisation": "standardise"}] * 2, 1),
        ([{"hidden_layers": 0, "normalisation": n} for n in ("none", "standardise")], 1),
        ([{"normalisation": "standardise"}, {"hidden_layers": 0, "normalisation": "none"}], 2),
        ([{"hidden_layers": 2, "normalisation": "none"}, {"activation": "gelu",
          "normalisation": "standardise"}], 2),
    ],
    ids=("standardised", "linear", "mixed", "networks"),
)  # fmt: skip
def test_heads_of_other_blocks_answer_together(
    encoder: Any, head: Heads, pixels: Pixels, fields: list[dict[str, Any]], n_heads: int
) -> None:
    sets, weights = ["top+early", "top+middle"], [0.75, 0.25]
    pairs = [
        _of_blocks(head, layers, i, **own)
        for i, (layers, own) in enumerate(zip(sets, fields, strict=True))
    ]
    joined = weighted_mean([one for one, _ in pairs], weights, BLOCKS)
    assert len(joined) == n_heads
    assert {one.config.layers for one in joined} == {"top+middle+early"}
    if n_heads == 1:  # standardised as its members, so that fine-tuning starts as from them
        assert joined[0].config.normalisation == "standardise"
        assert joined[0].mean is not None
    features = np.asarray(encoder(pixels))
    expected = np.sum(
        [w * one.logits(features[:, own]) for w, (one, own) in zip(weights, pairs, strict=True)],
        axis=0,
    )
    found = np.mean([one.logits(features) for one in joined], axis=0)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    model = assemble(encoder, joined, 1.0)
    np.testing.assert_allclose(np.asarray(model(pixels)), softmax(expected), atol=1e-5)


def test_columns_that_no_head_uses_are_left_out(head: Heads) -> None:
    linear: dict[str, Any] = {"hidden_layers": 0, "normalisation": "none"}
    pairs = [_of_blocks(head, layers, i, **linear) for i, layers in enumerate(("middle", "early"))]
    (joined,) = weighted_mean([one for one, _ in pairs], [0.5, 0.5], BLOCKS)
    assert joined.config.layers == "middle+early"
    assert joined.layers[0].kernel.shape == (8, 3)


def test_heads_that_have_no_exact_mean_are_left_apart(head: Heads) -> None:
    assert average_linear([head(0), head(1)]) is None
    mixed = [head(0, hidden_layers=0), head(1, hidden_layers=0, normalisation="none")]
    assert average_linear(mixed) is None


def test_logits_from_pixels_and_from_features_are_those_before_the_temperature(
    encoder: Any, head: Heads, pixels: Pixels, tmp_path: Path
) -> None:
    model = assemble(encoder, [head()], 4.0)
    features = np.asarray(encoder(pixels))
    expected = head().logits(features)
    assert np.asarray(logits_model(model)(pixels)) == pytest.approx(expected, abs=1e-5)
    save_model(tmp_path / "model.h5", model, METADATA)
    inference = load_model(tmp_path / "model.h5").inference
    assert inference.logits(features) == pytest.approx(expected, abs=1e-5)
    hold_to_keras(inference, model)
    with pytest.raises(TrainingError, match=r"in Keras and as it is served must agree to 0\.0001"):
        hold_to_keras(inference, assemble(encoder, [head(1)], 4.0))


def test_metadata_longer_than_an_hdf5_header(encoder: Any, head: Heads, tmp_path: Path) -> None:
    metadata = {"classes": [f"class {i} {'x' * 80}" for i in range(3000)]}
    save_model(tmp_path / "model.h5", assemble(encoder, [head()], 1.0), metadata)
    assert read_metadata(tmp_path / "model.h5") == metadata


def test_another_feature_dimension_is_refused(encoder: Any) -> None:
    import keras

    image = keras.Input((8,), name="image")
    narrow = keras.Model(image, keras.layers.Activation("linear", name="features")(image))
    with pytest.raises(TrainingError, match=r"8 features, but was trained on 12"):
        assemble(narrow, [make_head()], 1.0)
    unnamed = keras.Model(encoder.input, encoder.layers[-2].output)
    with pytest.raises(TrainingError, match=r"must end in a layer named features"):
        assemble(unnamed, [make_head()], 1.0)


def test_other_files_are_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="does not: run `dvc repro train`"):
        read_metadata(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(FormatError, match=r"text\.h5 must be a model file"):
        read_metadata(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.attrs["format"] = "headstart-model"
        file.attrs["format_version"] = 99
    with pytest.raises(FormatError, match="headstart-model 1, but got headstart-model 99"):
        read_metadata(tmp_path / "other.h5")


def test_a_failed_save_leaves_the_old_file(encoder: Any, head: Heads, tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    save_model(path, assemble(encoder, [head()], 1.0), METADATA)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_model(path, assemble(encoder, [head(1)], 1.0), {"classes": object()})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.h5"]
