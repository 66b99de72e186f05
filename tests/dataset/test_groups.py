"""Which images are in one group, and in which split a group lies."""

import random
from collections import defaultdict
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from headstart.dataset.duplicates import find_groups, straddling
from headstart.dataset.image_statistics import STATISTICS
from headstart.dataset.splits import Key, Thresholds, assign_splits
from headstart.params.split import Split, SplitParams

FRACTIONS = SplitParams()


def statistics_of(pictures: list[tuple[int, int]]) -> NDArray[Any]:
    """Images given as (what they show, which file of it): files of one picture are near copies."""
    statistics = np.zeros(len(pictures), STATISTICS)
    for row, (shown, file) in enumerate(pictures):
        rng = np.random.default_rng(shown)
        statistics["thumbnail"][row] = rng.integers(0, 256, 256)
        statistics["sha256"][row] = np.random.default_rng((shown, file)).integers(0, 256, 32)
    return statistics


def split_pictures(
    pictures: list[tuple[int, int]],
    groups: list[str | None],
    seed: int,
    known: dict[Key, Thresholds] | None = None,
) -> tuple[list[str], list[Split], dict[Key, Thresholds]]:
    n = len(pictures)
    found = find_groups(statistics_of(pictures), np.zeros(n, np.int64), groups, max_bits=4)
    assigned = assign_splits(
        found.keys, ["a"] * n, [None] * n, seed=seed, fractions=FRACTIONS, known=known or {}
    )
    return found.keys, assigned.splits, assigned.thresholds


files = st.tuples(st.integers(0, 12), st.integers(0, 3))
grouped_files = st.lists(
    st.tuples(files, st.none() | st.sampled_from(["p1", "p2", "p3"])), max_size=30
)


@settings(max_examples=60, deadline=None)
@given(grouped_files, st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
def test_splits_are_group_pure_and_stable_under_permutation(
    rows: list[tuple[tuple[int, int], str | None]], seed: int, shuffle: random.Random
) -> None:
    pictures, groups = [row[0] for row in rows], [row[1] for row in rows]
    keys, splits, _ = split_pictures(pictures, groups, seed)
    assert straddling(keys, splits) == []
    for members in (pictures, [row[0] for row in pictures]):
        of_member: dict[Any, set[str]] = defaultdict(set)
        for member, split in zip(members, splits, strict=True):
            of_member[member].add(split)
        assert all(len(found) == 1 for found in of_member.values())
    of_user: dict[str, set[str]] = defaultdict(set)
    for group, split in zip(groups, splits, strict=True):
        if group is not None:
            of_user[group].add(split)
    assert all(len(found) == 1 for found in of_user.values())
    order = list(range(len(rows)))
    shuffle.shuffle(order)
    mixed_keys, mixed, _ = split_pictures(
        [pictures[i] for i in order], [groups[i] for i in order], seed
    )
    assert mixed == [splits[i] for i in order]
    assert mixed_keys == [keys[i] for i in order]


@settings(max_examples=60, deadline=None)
@given(st.lists(files, max_size=25), st.lists(files, max_size=10), st.integers(0, 2**32 - 1))
def test_newcomers_move_only_members_of_groups_that_they_join(
    old: list[tuple[int, int]], new: list[tuple[int, int]], seed: int
) -> None:
    _, before, known = split_pictures(old, [None] * len(old), seed)
    _, after, _ = split_pictures(old + new, [None] * len(old + new), seed, known)
    joined = {shown for shown, file in new if (shown, file) not in old}
    for (shown, _), was, now in zip(old, before, after[: len(old)], strict=True):
        assert was == now or shown in joined


def test_copies_near_copies_and_label_conflicts_are_flagged() -> None:
    pictures = [(1, 1), (1, 1), (2, 1), (2, 2), (3, 1), (4, 1), (4, 2)]
    labels = np.array([0, 0, 0, 0, 0, 0, 1], np.int64)
    groups = find_groups(statistics_of(pictures), labels, [None] * 7, max_bits=4)
    assert groups.exact_duplicates.tolist() == [True, True] + [False] * 5
    assert groups.near_duplicates.tolist() == [False, False, True, True, False, True, True]
    assert groups.label_conflict.tolist() == [False] * 5 + [True, True]
    assert groups.duplicates.tolist() == [0, 0, 2, 2, 4, 5, 5]


def test_a_mirrored_copy_under_another_label_shares_the_group_and_is_no_conflict() -> None:
    """Arrows to the left and to the right are two classes."""
    statistics = statistics_of([(1, 1), (1, 2), (2, 1)])
    statistics["thumbnail"][1] = statistics["thumbnail"][1].reshape(16, 16)[:, ::-1].ravel()
    groups = find_groups(statistics, np.array([0, 1, 0]), [None] * 3, max_bits=4)
    assert groups.keys[0] == groups.keys[1] != groups.keys[2]
    assert groups.near_duplicates.tolist() == [True, True, False]
    assert not groups.label_conflict.any()


def test_the_users_group_names_the_key_and_bridges_groups() -> None:
    pictures = [(1, 1), (1, 2), (2, 1), (3, 1)]
    groups = find_groups(
        statistics_of(pictures), np.zeros(4, np.int64), [None, "p", "p", None], max_bits=4
    )
    assert groups.keys[:3] == ["p", "p", "p"]
    assert groups.keys[3] == statistics_of(pictures)["sha256"][3].tobytes().hex()
    assert not groups.near_duplicates[2]


def test_nothing_at_all() -> None:
    assert split_pictures([], [], 0) == ([], [], {})
