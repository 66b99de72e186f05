"""Folds: grouped, stratified, complete, and the same for the same seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.common.errors import SearchError
from headstart.heads.folds import assign_folds, count_folds, folds_of


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 120), st.integers(2, 5), st.integers(2, 5), st.integers(0, 1000))
def test_no_group_straddles_two_folds(n: int, folds: int, n_classes: int, seed: int) -> None:
    chance = np.random.default_rng(seed)
    keys = [f"group-{key}" for key in chance.integers(max(folds, n // 3), size=n - folds)]
    keys += [f"own-{index}" for index in range(folds)]
    label_ids = chance.integers(n_classes, size=n)
    fold = assign_folds(label_ids, keys, folds=folds, seed=seed)
    assert set(fold) <= {-1, *range(folds)}
    groups_of_class = [{k for k, c in zip(keys, label_ids, strict=True) if c == own}
                       for own in range(n_classes)]  # fmt: skip
    alone = set().union(*(groups for groups in groups_of_class if len(groups) == 1))
    assert {k for f, k in zip(fold, keys, strict=True) if f == -1} == alone
    for key in set(keys):
        assert len({f for f, k in zip(fold, keys, strict=True) if k == key}) == 1
    assert np.array_equal(fold, assign_folds(label_ids, keys, folds=folds, seed=seed))


def test_classes_are_spread_evenly() -> None:
    label_ids = np.repeat([0, 1, 2], [50, 30, 7])
    keys = [str(index) for index in range(len(label_ids))]
    fold = assign_folds(label_ids, keys, folds=5, seed=1)
    counts = np.array(
        [[np.sum((fold == f) & (label_ids == c)) for c in range(3)] for f in range(5)]
    )
    assert counts.max(axis=0).tolist() == [10, 6, 2]
    assert counts.min(axis=0).tolist() == [10, 6, 1]
    assert np.ptp(counts.sum(axis=1)) <= 1


def test_every_fold_is_held_out_once_from_each_seed() -> None:
    folds = folds_of(np.arange(20) % 4, [7, 8])
    assert [fold.seed for fold in folds] == [7, 8] * 4
    for repeat in (folds[::2], folds[1::2]):
        held_out = np.concatenate([fold.validation for fold in repeat])
        assert sorted(held_out) == list(range(20))
    for fold in folds:
        assert sorted([*fold.train, *fold.validation]) == list(range(20))


def test_there_are_no_more_folds_than_the_smallest_class_has_groups() -> None:
    label_ids = np.repeat([0, 1, 2], [12, 3, 1])
    keys = [str(index) for index in range(16)]
    assert count_folds(label_ids, keys, most=5) == 3, "the class of one group only trains"
    assert count_folds(label_ids, keys, most=2) == 2
    fold = assign_folds(label_ids, keys, folds=3, seed=0)
    assert fold[-1] == -1
    assert sorted(fold[12:15]) == [0, 1, 2]
    assert all(15 in one.train for one in folds_of(fold, [0]))
    with pytest.raises(SearchError, match="needs a class of two groups, but every class has one"):
        count_folds(np.array([0, 0, 1]), ["a", "a", "b"], most=5)
