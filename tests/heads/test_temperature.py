"""Temperature scaling."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss

from headstart.heads.metrics import softmax
from headstart.heads.temperature import PRIOR_IMAGES, fit_temperature


def _draw(
    n: int, *, scale: float, seed: int, n_classes: int = 4
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits that are `scale` times the ones the labels were drawn from."""
    generator = np.random.default_rng(seed)
    honest = generator.normal(size=(n, n_classes)) * 2
    cumulative = np.cumsum(softmax(honest), axis=1)
    labels = (generator.random((n, 1)) > cumulative).sum(axis=1).clip(max=n_classes - 1)
    return (honest * scale).astype(np.float32), labels.astype(np.int64)


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_finds_the_temperature_that_the_labels_were_drawn_with(scale: float) -> None:
    logits, labels = _draw(5000, scale=scale, seed=0)
    assert fit_temperature(logits, labels) == pytest.approx(scale, rel=0.06)


@pytest.mark.parametrize("scale", [0.4, 3.0])
def test_is_the_minimum_of_the_penalised_loss(scale: float) -> None:
    logits, labels = _draw(60, scale=scale, seed=1)

    def loss(log_temperature: float) -> float:
        inverse = np.exp(-log_temperature)
        data = log_loss(labels, softmax(logits * inverse), labels=range(4)) * len(labels)
        return float(data + PRIOR_IMAGES * (inverse - np.log(inverse)))

    best = minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9})
    assert fit_temperature(logits, labels) == pytest.approx(np.exp(best.x), rel=1e-5)


def test_held_back_log_loss_does_not_suffer() -> None:
    for n in (20, 90, 225, 1000):
        for scale in (0.5, 1.0, 2.0):
            before, after = [], []
            for seed in range(20):
                logits, labels = _draw(n, scale=scale, seed=seed)
                temperature = fit_temperature(logits, labels)
                others, truth = _draw(2000, scale=scale, seed=seed + 1000)
                before.append(log_loss(truth, softmax(others), labels=range(4)))
                after.append(log_loss(truth, softmax(others / temperature), labels=range(4)))
            assert np.mean(after) <= np.mean(before) + 0.01, (n, scale)


def test_a_split_without_a_mistake_does_not_end_in_certainty() -> None:
    labels = np.arange(90) % 3
    logits = np.eye(3, dtype=np.float32)[labels] * 4
    assert 0.3 < fit_temperature(logits, labels) < 1


def test_no_images_leave_the_logits_as_they_are() -> None:
    assert fit_temperature(np.zeros((0, 3), np.float32), np.zeros(0, np.int64)) == 1.0


def test_predictions_do_not_change() -> None:
    logits, labels = _draw(300, scale=3.0, seed=5)
    scaled = softmax(logits / fit_temperature(logits, labels))
    assert (scaled.argmax(axis=1) == logits.argmax(axis=1)).all()
