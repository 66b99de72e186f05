"""Bootstrap intervals."""

import numpy as np
import pytest
from numpy.typing import NDArray

from headstart.evaluation.bootstrap import Interval, Statistics, intervals, of_all_or_none


def _accuracy(right: NDArray[np.bool_]) -> Statistics:
    return lambda rows: {"accuracy": float(right[rows].mean())}


def test_coverage_is_nominal_for_a_proportion() -> None:
    generator = np.random.default_rng(0)
    groups = [str(i) for i in range(300)]
    inside = 0
    for experiment in range(300):
        right = generator.random(300) < 0.9
        found = intervals(_accuracy(right), groups, n_resamples=300, seed=experiment)["accuracy"]
        inside += found.low <= 0.9 <= found.high
    assert 0.91 <= inside / 300 <= 0.98


def test_coverage_is_nominal_only_if_whole_groups_are_drawn() -> None:
    """Thirty groups of ten identical rows are thirty observations, not three hundred."""
    generator = np.random.default_rng(1)
    grouped = [str(i // 10) for i in range(300)]
    alone = [str(i) for i in range(300)]
    inside = {"grouped": 0, "alone": 0}
    for experiment in range(200):
        right = np.repeat(generator.random(30) < 0.7, 10)
        for name, groups in (("grouped", grouped), ("alone", alone)):
            found = intervals(_accuracy(right), groups, n_resamples=200, seed=experiment)
            inside[name] += found["accuracy"].low <= 0.7 <= found["accuracy"].high
    assert 0.88 <= inside["grouped"] / 200 <= 0.99
    assert inside["alone"] / 200 < 0.7


def test_singleton_groups_draw_as_many_rows_as_there_are() -> None:
    seen: list[int] = []

    def statistics(rows: NDArray[np.int64]) -> dict[str, float]:
        seen.append(len(rows))
        return {"mean": float(rows.mean())}

    intervals(statistics, ["a", "b", "c", "d"], n_resamples=5, seed=0)
    assert seen == [4] * 5


def test_same_seed_same_interval() -> None:
    values = np.random.default_rng(2).random(50)

    def run(seed: int) -> float:
        found = intervals(
            lambda rows: {"mean": float(values[rows].mean())},
            [str(i) for i in range(50)],
            n_resamples=100,
            seed=seed,
        )
        return found["mean"].low

    assert run(0) == run(0)
    assert run(0) != run(1)


def test_interval_of_a_mean_matches_the_normal_approximation() -> None:
    values = np.random.default_rng(3).normal(size=400)
    found = intervals(
        lambda rows: {"mean": float(values[rows].mean())},
        [str(i) for i in range(400)],
        n_resamples=4000,
        seed=0,
    )["mean"]
    half = 1.96 * values.std() / np.sqrt(400)
    assert found.low == pytest.approx(values.mean() - half, abs=0.01)
    assert found.high == pytest.approx(values.mean() + half, abs=0.01)


def test_images_that_are_all_right_still_have_an_interval() -> None:
    groups = ["a", "a", *map(str, range(28))]
    exact = of_all_or_none(Interval(1.0, 1.0), groups)
    assert exact.low == pytest.approx(0.025 ** (1 / 29))
    assert exact.high == 1.0
    assert of_all_or_none(Interval(0.0, 0.0), groups) == Interval(0.0, 1 - exact.low)
    assert of_all_or_none(Interval(0.5, 1.0), groups) == Interval(0.5, 1.0)
