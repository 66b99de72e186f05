"""A split is a hash of the group's key and the seed, and of nothing else."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.images.splits import position, split_of
from headstart.params.images import SPLITS, SplitParams


@given(st.lists(st.text(), unique=True), st.integers(0, 2**32 - 1))
def test_every_group_has_one_split_whatever_the_order(groups: list[str], seed: int) -> None:
    forwards = {group: split_of(group, seed=seed, fractions=SplitParams()) for group in groups}
    backwards = {
        group: split_of(group, seed=seed, fractions=SplitParams()) for group in groups[::-1]
    }
    assert forwards == backwards
    assert set(forwards.values()) <= set(SPLITS)


@pytest.mark.parametrize("seed", range(5))
def test_fractions_hold_up_to_binomial_noise(seed: int) -> None:
    n = 20_000
    fractions = SplitParams(train=0.6, validation=0.3, test=0.1)
    counts = Counter(split_of(f"group {i}", seed=seed, fractions=fractions) for i in range(n))
    for name, fraction in zip(SPLITS, (0.6, 0.3, 0.1), strict=True):
        sigma = math.sqrt(n * fraction * (1 - fraction))
        assert abs(counts[name] - n * fraction) < 5 * sigma


def test_seeds_give_independent_splits() -> None:
    groups = [str(i) for i in range(5000)]
    same = sum(
        split_of(g, seed=0, fractions=SplitParams()) == split_of(g, seed=1, fractions=SplitParams())
        for g in groups
    )
    expected = 0.7**2 + 2 * 0.15**2
    assert abs(same / len(groups) - expected) < 0.04


def test_a_placement_is_pinned() -> None:
    # A change here moves every image of every user to another split.
    assert position("group", seed=7) == 0.21874828723604978
