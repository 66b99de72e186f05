"""Champion against challenger."""

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest

from headstart.common.errors import DataError
from headstart.evaluation.comparison import compare_models


def _probabilities(label_ids: NDArray[np.int64], right: NDArray[np.bool_]) -> NDArray[np.float64]:
    chosen = np.where(right, label_ids, (label_ids + 1) % 3)
    return np.where(np.eye(3, dtype=bool)[chosen], 0.8, 0.1)


def _pair(
    n: int, champion: float, challenger: float, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    label_ids = generator.integers(0, 3, n)
    first = _probabilities(label_ids, generator.random(n) < champion)
    return first, _probabilities(label_ids, generator.random(n) < challenger), label_ids


def test_a_clear_gain_is_better_and_says_so() -> None:
    found = compare_models(*_pair(300, 0.7, 0.9, 0), seed=0)
    assert found.verdict == "better"
    assert found.not_worse
    assert 0 < found.accuracy.low < found.accuracy.value < found.accuracy.high
    assert found.log_loss.value < 0
    assert "so the challenger is better" in found.sentence
    assert f"the challenger alone gets {found.only_challenger_right} right" in found.sentence
    assert json.loads(json.dumps(found.as_json()))["accuracy"]["value"] == found.accuracy.value


def test_the_same_loss_the_other_way_is_worse() -> None:
    champion, challenger, label_ids = _pair(300, 0.7, 0.9, 0)
    found = compare_models(challenger, champion, label_ids, seed=0)
    assert found.verdict == "worse"
    assert not found.not_worse


def test_the_same_model_is_undecided_and_not_worse() -> None:
    champion, _, label_ids = _pair(100, 0.9, 0.9, 1)
    found = compare_models(champion, champion, label_ids, seed=0)
    assert (found.verdict, found.not_worse, found.p_value) == ("undecided", True, 1.0)
    assert (found.accuracy.low, found.accuracy.high) == (0.0, 0.0)


def test_equally_good_models_are_told_apart_at_most_one_time_in_twenty() -> None:
    verdicts = [
        compare_models(*_pair(200, 0.9, 0.9, seed), seed=seed, n_resamples=200).verdict
        for seed in range(400)
    ]
    assert sum(verdict != "undecided" for verdict in verdicts) <= 28


@pytest.mark.parametrize(("lost", "won"), [(4, 12), (0, 6), (9, 30), (1, 2)])
def test_mid_p_lies_below_the_exact_test_by_half_of_the_point(lost: int, won: int) -> None:
    champion = _probabilities(np.zeros(lost + won, np.int64), np.arange(lost + won) < lost)
    challenger = _probabilities(np.zeros(lost + won, np.int64), np.arange(lost + won) >= lost)
    found = compare_models(champion, challenger, np.zeros(lost + won, np.int64), seed=0)
    assert (found.only_champion_right, found.only_challenger_right) == (lost, won)
    exact = binomtest(lost, lost + won, 0.5).pvalue
    assert exact / 2 - 1e-12 < found.p_value < exact


def test_repeated_images_do_not_count_as_evidence_when_grouped() -> None:
    champion, challenger, label_ids = _pair(40, 0.8, 0.95, 3)
    first, second = np.repeat(champion, 10, axis=0), np.repeat(challenger, 10, axis=0)
    groups = [str(i // 10) for i in range(400)]
    labels = np.repeat(label_ids, 10)
    grouped = compare_models(first, second, labels, seed=0, groups=groups)
    alone = compare_models(first, second, labels, seed=0)
    assert grouped.accuracy.low < alone.accuracy.low


def test_what_the_best_of_many_shows_by_luck_is_no_proof() -> None:
    champion, challenger, label_ids = _pair(1000, 0.93, 0.96, 2)
    plain = compare_models(champion, challenger, label_ids, seed=0)
    lucky = compare_models(champion, challenger, label_ids, seed=0, optimism=(0.0, 0.04))
    both = compare_models(champion, challenger, label_ids, seed=0, optimism=(0.04, 0.04))
    assert plain.verdict == both.verdict == "better"
    assert lucky.verdict == "undecided"
    assert lucky.accuracy.value == pytest.approx(plain.accuracy.value - 0.04)
    assert lucky.challenger_accuracy == pytest.approx(plain.challenger_accuracy - 0.04)
    assert both.accuracy.value == pytest.approx(plain.accuracy.value)
    assert "corrected for selection" in lucky.sentence


def test_other_images_are_refused() -> None:
    champion, challenger, label_ids = _pair(20, 0.8, 0.8, 0)
    with pytest.raises(DataError, match="evaluate both on the same manifest"):
        compare_models(champion[:10], challenger, label_ids, seed=0)
    with pytest.raises(DataError, match="needs images, but got none"):
        compare_models(champion[:0], challenger[:0], label_ids[:0], seed=0)
