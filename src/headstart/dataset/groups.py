"""Which images belong together: copies, near copies, and what the user said.

Members of a group share a split. A group's key is the user's name for it, else the smallest hash of
its members; so only a newcomer that joins or bridges groups can move an image.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.dataset.duplicates import Forest, Rows, find_near_duplicates, groups_of_equals


@dataclass(frozen=True)
class Groups:
    """Groups of n images: `keys[i]` names the group of image i; flags are bool, shape (n,).

    `duplicates` is the cluster of copies and near copies of each image, named by its first member.
    Copies under several labels conflict only if they are neither mirrored nor turned, for that may
    be what tells two classes from each other, such as arrows to the left and to the right.
    """

    keys: list[str]
    duplicates: Rows
    exact_duplicates: NDArray[np.bool_]
    near_duplicates: NDArray[np.bool_]
    label_conflict: NDArray[np.bool_]


def find_groups(
    statistics: NDArray[Any],
    label_ids: NDArray[np.int64],
    user_groups: Sequence[str | None],
    *,
    max_bits: int,
) -> Groups:
    """Group images (dtype STATISTICS) by their bytes, their looks, and the user's groups."""
    n = len(statistics)
    _, first_copies, copy_of = np.unique(
        _hash_keys(statistics), return_index=True, return_inverse=True
    )
    looks = find_near_duplicates(statistics[first_copies], max_bits=max_bits)
    together = Forest(n)
    # The first row of each cluster of looks, so that a cluster is named by its first member.
    look_of = looks.turned[copy_of]
    for rows in groups_of_equals(look_of):
        together.join(rows[1:], np.full(len(rows) - 1, rows[0]))
    duplicates = together.roots(np.arange(n, dtype=np.int64))
    named = np.array([name or "" for name in user_groups], dtype=object)
    rows_named = np.flatnonzero(named != "")
    for rows in groups_of_equals(_codes(named[rows_named])):
        chosen = rows_named[rows]
        together.join(chosen[1:], np.full(len(chosen) - 1, chosen[0]))
    groups = together.roots(np.arange(n, dtype=np.int64))
    return Groups(
        keys=_keys(groups, statistics, user_groups),
        duplicates=duplicates,
        exact_duplicates=np.bincount(copy_of)[copy_of] > 1,
        near_duplicates=np.bincount(looks.turned)[look_of] > 1,
        label_conflict=_conflicts(looks.upright[copy_of], label_ids),
    )


def straddling(groups: Sequence[str], splits: Sequence[str]) -> list[str]:
    """Keys of groups whose members lie in more than one split, sorted: the leaks of a split."""
    pairs = set(zip(groups, splits, strict=True))
    counts = Counter(group for group, _ in pairs)
    return sorted(group for group, count in counts.items() if count > 1)


def _hash_keys(statistics: NDArray[Any]) -> NDArray[np.void]:
    return np.ascontiguousarray(statistics["sha256"]).view("V32").ravel()


def _codes(names: NDArray[np.object_]) -> NDArray[np.int64]:
    codes: dict[str, int] = {}
    return np.array([codes.setdefault(name, len(codes)) for name in names], dtype=np.int64)


def _keys(groups: Rows, statistics: NDArray[Any], user_groups: Sequence[str | None]) -> list[str]:
    smallest: dict[int, tuple[bool, str]] = {}
    names = []
    for row, group in enumerate(groups.tolist()):
        user = user_groups[row]
        name = (
            user is None,
            user if user is not None else statistics["sha256"][row].tobytes().hex(),
        )
        names.append(group)
        smallest[group] = min(smallest.get(group, name), name)
    return [smallest[group][1] for group in names]


def _conflicts(duplicates: Rows, label_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    conflicts = np.zeros(len(duplicates), dtype=bool)
    for rows in groups_of_equals(duplicates):
        conflicts[rows] = len(np.unique(label_ids[rows])) > 1
    return conflicts
