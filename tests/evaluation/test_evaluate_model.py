"""Scores and their intervals; the stage is held by tests/stages/test_evaluate.py."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from headstart.evaluation.evaluate_model import score_intervals
from headstart.heads.metrics import ece, scores, softmax
from tests.evaluation.conftest import draw_predictions


def test_metrics_agree_with_scikit_learn() -> None:
    labels, probabilities = draw_predictions()
    predicted = probabilities.argmax(axis=1)
    expected = {
        "accuracy": reference.accuracy_score(labels, predicted),
        "balanced_accuracy": reference.balanced_accuracy_score(labels, predicted),
        "macro_f1": reference.f1_score(labels, predicted, average="macro"),
        "top_3_accuracy": reference.top_k_accuracy_score(labels, probabilities, k=3),
        "log_loss": reference.log_loss(labels, probabilities),
        "brier": np.square(probabilities - np.eye(4)[labels]).sum(axis=1).mean(),
    }
    found = scores(labels, probabilities)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(2, 5), st.floats(0.1, 8), st.integers(0, 10_000))
def test_the_calibration_error_lies_in_its_interval(
    n: int, n_classes: int, sharpness: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, n_classes, n)
    probabilities = softmax(sharpness * generator.normal(size=(n, n_classes)))
    groups = [str(group) for group in generator.integers(0, max(1, n // 2), n)]
    found = score_intervals(labels, probabilities, groups, n_resamples=40, seed=seed)["ece"]
    assert 0 <= found.low <= float(ece(labels, probabilities)) <= found.high


@pytest.mark.parametrize("exponent", [1.0, 2.0], ids=["calibrated", "overconfident"])
def test_the_calibration_errors_interval_covers_it(exponent: float) -> None:
    """Of 40 samples of 200 images; the true value is that of a large one."""

    def draw(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        generator = np.random.default_rng(seed)
        true = generator.uniform(0.5, 1.0, n)
        odds = (true / (1 - true)) ** exponent
        stated = odds / (1 + odds)
        right = generator.random(n) < true
        first = np.where(right, stated, 1 - stated)
        return np.stack([first, 1 - first], axis=1), stated, true

    _, stated, true = draw(100_000, 0)
    error = float(np.sqrt(np.square(stated - true).mean()))
    groups = [str(image) for image in range(200)]
    inside = 0
    for seed in range(1, 41):
        probabilities, _, _ = draw(200, seed)
        labels = np.zeros(200, np.int64)
        found = score_intervals(labels, probabilities, groups, n_resamples=100, seed=seed)["ece"]
        inside += found.low <= error <= found.high
    assert inside >= 36


@pytest.mark.parametrize(("n", "low"), [(90, 0.9598), (20, 0.8316)])
def test_no_error_among_few_images_is_no_certainty(n: int, low: float) -> None:
    labels = np.arange(n) % 2
    right, groups = np.eye(2)[labels], [str(i) for i in range(n)]
    found = score_intervals(labels, right, groups, n_resamples=50, seed=0)["accuracy"]
    assert found.low == pytest.approx(low, abs=1e-4)
    assert found.high == 1.0
    none = score_intervals(labels, 1 - right, groups, n_resamples=50, seed=0)["accuracy"]
    assert none.low == 0.0
    assert none.high == pytest.approx(1 - low, abs=1e-4)
    # Copies are drawn together: they are no further evidence.
    copied = score_intervals(
        np.repeat(labels, 3), right.repeat(3, axis=0), np.repeat(groups, 3).tolist(),
        n_resamples=50, seed=0,
    )["accuracy"]  # fmt: skip
    assert copied.low == found.low
