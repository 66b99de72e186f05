"""The corrected estimate says what the best of many equal trials is worth: no more than one."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from headstart.heads.metrics import METRICS, PER_IMAGE, scores
from headstart.search.selection import AnswerStore, correct_for_selection


def equal_trials(
    n_trials: int, n: int, accuracy: float, seed: int
) -> tuple[NDArray[np.int64], dict[int, NDArray[np.float64]]]:
    chance = np.random.default_rng(seed)
    label_ids = chance.integers(4, size=n)
    answers = {}
    for number in range(n_trials):
        wrong = chance.random(n) > accuracy
        given = np.where(wrong, (label_ids + 1 + chance.integers(3, size=n)) % 4, label_ids)
        answers[number] = np.eye(4)[given] * 0.7 + 0.075
    return label_ids, answers


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy"])
def test_of_many_equal_trials_the_best_is_no_better(metric: str) -> None:
    best, corrected = [], []
    for seed in range(8):
        label_ids, answers = equal_trials(60, 300, 0.9, seed)
        groups = [str(i) for i in range(300)]
        best.append(max(scores(label_ids, one)[metric] for one in answers.values()))
        found = correct_for_selection(metric, label_ids, groups, answers, seed=seed)
        assert found is not None
        corrected.append(found.estimate)
        if metric == "accuracy":
            assert found.optimism == pytest.approx(best[-1] - found.estimate)
    assert np.mean(best) > 0.93, "chance made the best of them look better"
    assert abs(np.mean(corrected) - 0.9) < 0.008


def test_one_trial_keeps_its_value() -> None:
    label_ids, answers = equal_trials(1, 400, 0.8, seed=1)
    groups = [str(i // 2) for i in range(400)]
    found = correct_for_selection("log_loss", label_ids, groups, answers, seed=0)
    assert found is not None
    assert found.estimate == pytest.approx(scores(label_ids, answers[0])["log_loss"], abs=0.02)
    assert found.optimism == 0


def test_without_answers_there_is_no_estimate() -> None:
    assert correct_for_selection("accuracy", np.zeros(3, int), ["a", "b", "c"], {}, seed=0) is None


@pytest.mark.parametrize("metric", sorted(PER_IMAGE))
def test_what_images_add_has_the_metric_as_its_mean(metric: str) -> None:
    label_ids, answers = equal_trials(1, 50, 0.6, seed=2)
    assert PER_IMAGE[metric](label_ids, answers[0]).shape == (50,)
    assert PER_IMAGE[metric](label_ids, answers[0]).mean() == pytest.approx(
        float(METRICS[metric](label_ids, answers[0]))
    )


def test_answers_are_kept_by_trial(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path, "study")
    store.write(3, np.array([[0.25, 0.75]], np.float32))
    found = store.read([2, 3])
    assert list(found) == [3]
    np.testing.assert_array_equal(found[3], [[0.25, 0.75]])
