"""The compiled epoch is no other method: every network is the plain Keras model."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
from keras import ops

from headstart.heads.config import HeadConfig
from headstart.heads.folds import Fold
from headstart.heads.network import Network, NetworkData
from tests.heads import keras_reference

N, DIM, CLASSES, BATCH, EPOCHS = 150, 20, 4, 32, 3
BLOCKS = {"a": slice(0, 6), "b": slice(6, 11), "c": slice(11, DIM)}


def _data() -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(0)
    label_ids = np.sort(chance.integers(CLASSES, size=N) * (chance.random(N) < 0.8)).astype(
        np.int64
    )
    label_ids = chance.permutation(label_ids)
    features = np.eye(CLASSES, DIM)[label_ids] * 2 + chance.standard_normal((N, DIM))
    return (features * chance.uniform(0.2, 3, DIM) + 1).astype(np.float32), label_ids


def _folds() -> list[Fold]:
    number = np.arange(N) % 3
    return [Fold(np.flatnonzero(number != k), np.flatnonzero(number == k), k) for k in range(2)]


SINGLE = {
    "linear": HeadConfig(hidden_layers=0),
    "adamw constant": HeadConfig(width=24, schedule="constant", weight_decay=0.1),
    "adamw cosine": HeadConfig(width=24, epochs=5, warmup=0.3),
    "cosine without warm-up": HeadConfig(width=24, epochs=5, warmup=0.0),
    "sgd constant": HeadConfig(
        width=16, optimizer="sgd", learning_rate=0.05, schedule="constant", weight_decay=0.01
    ),
    "sgd cosine": HeadConfig(width=16, optimizer="sgd", learning_rate=0.1, momentum=0.5, epochs=4),
    "two layers": HeadConfig(width=16, hidden_layers=2, activation="gelu"),
    "no normalisation": HeadConfig(width=16, normalisation="none", activation="silu"),
    "layer norm": HeadConfig(width=16, normalisation="layer_norm", activation="tanh"),
    "input dropout": HeadConfig(width=16, input_dropout=0.4, dropout=0.5),
    "smoothing": HeadConfig(width=16, label_smoothing=0.2),
    "balanced": HeadConfig(width=16, class_weights="balanced"),
    "some blocks": HeadConfig(width=16, layers="a+c", input_dropout=0.3, weight_decay=0.1),
    "some blocks, layer norm": HeadConfig(
        hidden_layers=0, layers="b+c", normalisation="layer_norm"
    ),
}


# Between them every optimizer, schedule, normalisation and depth.
OFTEN = ("linear", "sgd constant", "no normalisation", "layer norm", "two layers", "some blocks")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in OFTEN else pytest.mark.slow) for n in SINGLE]
)
def test_it_is_the_plain_keras_model(name: str) -> None:
    """Logits after each epoch and weights, of both folds."""
    config, (features, label_ids) = SINGLE[name], _data()
    data = NetworkData(features[:, None], label_ids, CLASSES, BLOCKS)
    used = features[:, data.columns(config)]
    for fold in _folds():
        model, curve = keras_reference.train(
            config, used, label_ids, fold,
            n_classes=CLASSES, batch_size=BATCH, epochs=EPOCHS,
        )  # fmt: skip
        network = Network(config, data, fold, batch_size=BATCH, judged=fold.validation)
        for expected in curve:
            found = network.run_epoch()
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)
        head = network.fitted()
        assert (head.config, head.epochs) == (config, EPOCHS)
        np.testing.assert_allclose(head.logits(used), model(used), rtol=1e-4, atol=2e-5)
        dense = [layer.get_weights() for layer in model.layers if hasattr(layer, "units")]
        for layer, (kernel, bias) in zip(head.layers, dense, strict=True):
            np.testing.assert_allclose(layer.kernel, kernel, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(layer.bias, bias, rtol=1e-4, atol=1e-5)


def test_padding_stays_zero_in_training() -> None:
    features, label_ids = _data()
    config = HeadConfig(width=5, hidden_layers=2, weight_decay=0.1, dropout=0.2)
    data = NetworkData(features[:, None], label_ids, CLASSES, BLOCKS)
    network = Network(config, data, _folds()[0], batch_size=BATCH)
    for _ in range(3):
        network.run_epoch()
    kernel = np.asarray(ops.convert_to_numpy(network.weights["kernel_2"]))
    assert kernel.shape == (128, 128)
    assert np.abs(kernel[:5, :5]).min() > 0
    assert not kernel[5:].any()
    assert not kernel[:, 5:].any()


def _run_under_jax(which: str) -> str:
    command = [sys.executable, "-m", "pytest", __file__, "-k", which, "-m", ""]
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


needs_jax = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None, reason="install headstart[jax]"
)


@needs_jax
def test_under_jax() -> None:
    said = _run_under_jax("padding or (plain_keras and layers)")
    assert "2 passed" in said


@needs_jax
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_everything_under_jax() -> None:
    assert " passed" in _run_under_jax("not under_jax")
