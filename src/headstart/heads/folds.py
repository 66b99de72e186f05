"""Which rows a head is trained on and scored on: the splits themselves, or folds of one.

Folds are grouped (no group straddles two) and stratified (each has about its share of a class).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headstart.common.errors import SearchError
from headstart.heads.stack import RowGroup


def split_groups(n_train: int, n_validation: int, *, repeats: int, seed: int) -> list[RowGroup]:
    """Train on the first rows, score on the others; one group a repeat, each of its own seed."""
    weights = np.zeros(n_train + n_validation, np.float32)
    weights[:n_train] = 1
    validation = np.arange(n_train, n_train + n_validation)
    return [RowGroup(weights, validation, seed + repeat) for repeat in range(repeats)]


def fold_groups(
    label_ids: NDArray[np.int64],
    keys: Sequence[str],
    *,
    folds: int,
    repeats: int,
    seed: int,
) -> list[RowGroup]:
    """Train on all folds but one, score on that one; `folds` groups a repeat.

    Every repeat has folds and seeds of its own.
    """
    groups = []
    for repeat in range(repeats):
        fold = assign_folds(label_ids, keys, folds=folds, seed=seed + repeat)
        for index in range(folds):
            weights = (fold != index).astype(np.float32)
            held_out = np.flatnonzero(fold == index).astype(np.int64)
            groups.append(RowGroup(weights, held_out, seed + repeat))
    return groups


def assign_folds(
    label_ids: NDArray[np.int64],
    keys: Sequence[str],
    *,
    folds: int,
    seed: int,
    parameter: str = "search.folds",
) -> NDArray[np.int64]:
    """The fold of each row, int64 (n,).

    Groups go, largest first and else in an order of chance, to the fold that has most room for
    their classes.

    Args:
        parameter: where `folds` comes from, for the error.

    Raises:
        SearchError: fewer groups than folds.
    """
    names, group_of = np.unique(np.asarray(keys, dtype=object).astype(str), return_inverse=True)
    if len(names) < folds:
        raise SearchError(
            f"{parameter} must not be above the number of groups, but got {folds} folds and "
            f"{len(names)} groups: lower {parameter}"
        )
    n_classes = int(label_ids.max()) + 1
    counts = np.zeros((len(names), n_classes))
    np.add.at(counts, (group_of, label_ids), 1)
    share = counts.sum(axis=0) / folds
    chance = np.random.default_rng([seed, 3])
    shuffled = chance.permutation(len(names))
    order = shuffled[np.argsort(-counts[shuffled].sum(axis=1), kind="stable")]
    filled = np.zeros((folds, n_classes))
    fold_of_group = np.zeros(len(names), np.int64)
    weight = 1 / np.maximum(share, 1e-9)
    for group in order:
        # relative fill of the group's own classes, then of all rows
        own = (filled * weight) @ counts[group] / counts[group].sum()
        total = filled.sum(axis=1) / share.sum()
        chosen = int(np.lexsort((np.arange(folds), total, np.round(own, 9)))[0])
        filled[chosen] += counts[group]
        fold_of_group[group] = chosen
    return np.asarray(fold_of_group[group_of])
