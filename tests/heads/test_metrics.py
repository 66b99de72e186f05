"""Every metric against scikit-learn, for one head and for many at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as peer

from headstart.heads.metrics import (
    DIRECTION,
    METRICS,
    metric_names,
    objective,
    scores,
    softmax,
    squared_ece,
)


def _case(n: int, n_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(seed)
    return chance.integers(n_classes, size=n), softmax(chance.standard_normal((n, n_classes)) * 2)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(2, 7), st.integers(0, 10_000))
def test_equal_scikit_learn(n: int, n_classes: int, seed: int) -> None:
    label_ids, probabilities = _case(n, n_classes, seed)
    ids = np.arange(n_classes)
    predicted = probabilities.argmax(axis=1)
    found = scores(label_ids, probabilities)
    assert found["accuracy"] == pytest.approx(peer.accuracy_score(label_ids, predicted))
    recall = peer.recall_score(label_ids, predicted, average=None, labels=np.unique(label_ids))
    assert found["balanced_accuracy"] == pytest.approx(recall.mean())
    f1 = peer.f1_score(label_ids, predicted, average="macro", zero_division=0.0)
    assert found["macro_f1"] == pytest.approx(f1)
    assert found["log_loss"] == pytest.approx(peer.log_loss(label_ids, probabilities, labels=ids))
    one_hot = np.eye(n_classes)[label_ids]
    assert found["brier"] == pytest.approx(((probabilities - one_hot) ** 2).sum(axis=1).mean())
    if n_classes >= 4:
        top = peer.top_k_accuracy_score(label_ids, probabilities, k=3, labels=ids)
        assert found["top_3_accuracy"] == pytest.approx(top)


def test_ece_by_hand() -> None:
    # two bins of ten: confidence 0.9 right half of the time, confidence 0.6 always right
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4]] * 10)
    label_ids = np.array([0, 0, 1, 0] * 5)
    variance_of_the_first = 0.5 * 0.5 / 9
    squared = (0.4**2 - variance_of_the_first + 0.4**2) / 2
    assert scores(label_ids, probabilities)["ece"] == pytest.approx(squared**0.5)


def _stated(confidence: np.ndarray, chance: np.random.Generator, true: np.ndarray) -> np.ndarray:
    """Probabilities of two classes that state a confidence; the label is always 0."""
    right = chance.random(confidence.shape) < true
    first = np.where(right, confidence, 1 - confidence)
    return np.stack([first, 1 - first], axis=-1)


@pytest.mark.parametrize("overconfidence", [0.0, 0.05])
@pytest.mark.parametrize("n", [25, 200])
def test_the_calibration_error_is_not_biased_by_noise(overconfidence: float, n: int) -> None:
    chance = np.random.default_rng(0)
    true = chance.uniform(0.6, 0.9, size=(4000, n))
    found = squared_ece(np.zeros(n, np.int64), _stated(true + overconfidence, chance, true))
    error = found.std() / np.sqrt(len(found))
    assert found.mean() == pytest.approx(overconfidence**2, abs=4 * error)
    assert error < 0.1 * 0.05


def test_many_heads_at_once() -> None:
    chance = np.random.default_rng(0)
    label_ids = chance.integers(5, size=30)
    heads = softmax(chance.standard_normal((3, 30, 5)))
    for name in METRICS:
        together = METRICS[name](label_ids, heads)
        assert together == pytest.approx([scores(label_ids, head)[name] for head in heads])


def test_certain_and_wrong_is_finite() -> None:
    assert np.isfinite(scores(np.array([1]), np.array([[1.0, 0.0]]))["log_loss"])


def test_directions_and_names() -> None:
    assert set(DIRECTION) == set(METRICS)
    assert "top_3_accuracy" not in metric_names(3)
    assert "top_3_accuracy" in metric_names(4)


def test_ties_are_broken_by_log_loss_and_nothing_else_is() -> None:
    assert objective("log_loss", {"log_loss": 0.5}) == 0.5
    surer = objective("accuracy", {"accuracy": 0.5, "log_loss": 0.2})
    assert surer > objective("accuracy", {"accuracy": 0.5, "log_loss": 0.3})
    assert objective("brier", {"brier": 0.5, "log_loss": 0.2}) < objective(
        "brier", {"brier": 0.5, "log_loss": 0.3}
    )
    # One image of a million more, with the largest log loss there is against the least.
    worst = -np.log(1e-7)
    more = objective("accuracy", {"accuracy": 0.500001, "log_loss": worst})
    assert more > objective("accuracy", {"accuracy": 0.5, "log_loss": 0.0})
    assert np.isnan(objective("accuracy", {"accuracy": float("nan")}))
