"""The fast path is never another method: every head of a stack is the plain Keras model."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from headstart.heads.config import HeadConfig
from headstart.heads.folds import RowGroup
from headstart.heads.lanes import shape_for
from headstart.heads.stack import HeadStack, StackData
from tests.heads import keras_reference

N, DIM, CLASSES, BATCH, EPOCHS = 150, 20, 4, 32, 3


def _data() -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(0)
    label_ids = np.sort(chance.integers(CLASSES, size=N) * (chance.random(N) < 0.8)).astype(
        np.int64
    )
    label_ids = chance.permutation(label_ids)
    features = np.eye(CLASSES, DIM)[label_ids] * 2 + chance.standard_normal((N, DIM))
    return (features * chance.uniform(0.2, 3, DIM) + 1).astype(np.float32), label_ids


def _groups() -> list[RowGroup]:
    chance = np.random.default_rng(1)
    fold = np.arange(N) % 3
    weights = chance.uniform(0.5, 2, N).astype(np.float32)
    return [
        RowGroup(np.where(fold == k, 0, weights).astype(np.float32), np.flatnonzero(fold == k), k)
        for k in range(2)
    ]


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
}


# Between them every optimizer, schedule, normalisation and depth; the stack of sixteen has all.
OFTEN = ("linear", "sgd constant", "no normalisation", "layer norm", "two layers")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in OFTEN else pytest.mark.slow) for n in SINGLE]
)
def test_stack_of_one(name: str) -> None:
    assert_equal_to_keras([SINGLE[name]], which=[0])


def assert_equal_to_keras(configs: list[HeadConfig], which: list[int]) -> None:
    features, label_ids = _data()
    groups = _groups()
    shape = shape_for(configs, groups=2, feature_dim=DIM, n_classes=CLASSES, batch_size=BATCH)
    stack = HeadStack(StackData(features[:, None], label_ids, CLASSES), groups, shape)
    order = sorted(range(len(configs)), key=lambda i: -configs[i].width)
    assert all(stack.add(i, configs[i]) for i in order)
    logits = []
    for _ in range(EPOCHS):
        stack.run_epoch()
        numbers, found = stack.validation_logits()
        logits.append([dict(zip(numbers, values, strict=True)) for values in found])
    for number in which:
        for index, group in enumerate(groups):
            model, curve = keras_reference.train(
                configs[number],
                features,
                label_ids,
                group,
                n_classes=CLASSES,
                batch_size=BATCH,
                epochs=EPOCHS,
            )
            for epoch in range(EPOCHS):
                np.testing.assert_allclose(
                    logits[epoch][index][number], curve[epoch], rtol=1e-4, atol=2e-5
                )
            head = stack.fitted(number, index)
            np.testing.assert_allclose(head.logits(features), model(features), rtol=1e-4, atol=2e-5)
            dense = [layer.get_weights() for layer in model.layers if hasattr(layer, "units")]
            for layer, (kernel, bias) in zip(head.layers, dense, strict=True):
                np.testing.assert_allclose(layer.kernel, kernel, rtol=1e-4, atol=1e-5)
                np.testing.assert_allclose(layer.bias, bias, rtol=1e-4, atol=1e-5)


def test_stack_of_sixteen() -> None:
    """All of the above and four more, in one stack, of all depths, optimizers and widths."""
    more = [
        HeadConfig(hidden_layers=0, normalisation="none", optimizer="sgd", learning_rate=0.03),
        HeadConfig(width=40, hidden_layers=2, dropout=0.1),
        HeadConfig(width=8, activation="tanh", normalisation="layer_norm", input_dropout=0.2),
        HeadConfig(width=33, hidden_layers=1, class_weights="balanced", optimizer="sgd"),
    ]
    configs = [*SINGLE.values(), *more]
    assert len(configs) == 16
    assert_equal_to_keras(configs, which=list(range(16)))


def test_heads_that_come_late_or_move_are_no_others() -> None:
    """A head that begins in a used place, and is moved while it trains, is as if alone."""
    features, label_ids = _data()
    groups = _groups()
    data = StackData(features[:, None], label_ids, CLASSES)
    late = HeadConfig(width=24, hidden_layers=2, epochs=6)
    early = [
        HeadConfig(width=24, hidden_layers=2, normalisation="none"),
        HeadConfig(width=10, optimizer="sgd", learning_rate=0.1),
        HeadConfig(hidden_layers=0, input_dropout=0.3),
        HeadConfig(width=24, input_dropout=0.1),
    ]
    base = shape_for([late, *early], groups=2, feature_dim=DIM, n_classes=CLASSES, batch_size=BATCH)
    stack = HeadStack(data, groups, replace(base, lanes=4))
    for number, config in enumerate(early):
        assert stack.add(number, config)
    assert not stack.add(9, late)
    stack.run_epoch()
    stack.run_epoch()
    stack.remove([0, 2, 3])
    assert stack.add(9, late)
    stack.run_epoch()
    assert stack.compact()
    assert stack.shape.lanes == 2
    assert not stack.compact() or stack.shape.lanes == 1
    stack.run_epoch()

    alone = HeadStack(data, groups, replace(base, lanes=1), first_epoch=2)
    assert alone.add(0, late)
    alone.run_epoch()
    alone.run_epoch()
    for group in range(2):
        ours, expected = stack.fitted(9, group), alone.fitted(0, group)
        for found, wanted in zip(ours.layers, expected.layers, strict=True):
            np.testing.assert_allclose(found.kernel, wanted.kernel, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(found.bias, wanted.bias, rtol=1e-4, atol=1e-6)


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
    said = _run_under_jax("test_heads_that_come_late or (test_stack_of_one and two)")
    assert "2 passed" in said


@needs_jax
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_everything_under_jax() -> None:
    assert " passed" in _run_under_jax("not under_jax")
