"""Which rows a head is trained on and scored on.

Folds are grouped (no group straddles two) and stratified (each has about its share of a class). A
class of one group only trains: held out, it would be judged by heads that have not seen it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headstart.common.errors import SearchError


@dataclass(frozen=True)
class Fold:
    """Rows that a head is trained on, and those that it is then scored on.

    Attributes:
        train: int64, row numbers, ascending.
        validation: int64, row numbers, ascending.
        seed: of first weights, row orders and dropout.
    """

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    seed: int


def folds_of(fold: NDArray[np.int64], seeds: Sequence[int]) -> list[Fold]:
    """Each fold that has rows, from each seed: trained on all other rows.

    Args:
        fold: int64 (n,), as `assign_folds` gives them.
    """
    numbers = range(int(fold.max(initial=-1)) + 1)
    return [
        Fold(np.flatnonzero(fold != number), held_out, seed)
        for number in numbers
        if len(held_out := np.flatnonzero(fold == number))
        for seed in seeds
    ]


def count_folds(label_ids: NDArray[np.int64], keys: Sequence[str], most: int) -> int:
    """Folds such that every class of several groups can be in each, at least 2, at most `most`.

    Raises:
        SearchError: no class has two groups.
    """
    pairs = np.unique(np.stack([label_ids.astype(str), np.asarray(keys, str)]), axis=1)
    _, n_groups = np.unique(pairs[0], return_counts=True)
    several = n_groups[n_groups > 1]
    if not len(several):
        raise SearchError(
            "cross-validation needs a class of two groups, but every class has one: add images "
            "that are no near duplicates of each other, or correct the `group` of those there are"
        )
    return int(min(most, max(2, several.min())))


def assign_folds(
    label_ids: NDArray[np.int64], keys: Sequence[str], *, folds: int, seed: int
) -> NDArray[np.int64]:
    """The fold of each row, int64 (n,); -1 for the rows of a class of one group.

    Groups go, largest first and else in an order of chance, to the fold that has most room for
    their classes.
    """
    names, group_of = np.unique(np.asarray(keys, dtype=object).astype(str), return_inverse=True)
    n_classes = int(label_ids.max()) + 1
    counts = np.zeros((len(names), n_classes))
    np.add.at(counts, (group_of, label_ids), 1)
    alone = (counts > 0).sum(axis=0) == 1
    only_trains = np.asarray((counts[:, alone] > 0).any(axis=1))
    share = np.maximum(counts[~only_trains].sum(axis=0) / folds, 1e-9)
    chance = np.random.default_rng([seed, 3])
    shuffled = chance.permutation(len(names))
    order = shuffled[np.argsort(-counts[shuffled].sum(axis=1), kind="stable")]
    filled = np.zeros((folds, n_classes))
    fold_of_group = np.full(len(names), -1, np.int64)
    for group in order[~only_trains[order]]:
        # relative fill of the group's own classes, then of all rows
        own = (filled / share) @ counts[group] / counts[group].sum()
        total = filled.sum(axis=1) / share.sum()
        chosen = int(np.lexsort((np.arange(folds), total, np.round(own, 9)))[0])
        filled[chosen] += counts[group]
        fold_of_group[group] = chosen
    return np.asarray(fold_of_group[group_of])


def balanced_weights(label_ids: NDArray[np.int64], n_classes: int) -> NDArray[np.float32]:
    """Weights inverse to the classes' counts, of mean 1 over the rows; absent classes get 0."""
    counts = np.bincount(label_ids, minlength=n_classes)
    present = np.count_nonzero(counts)
    return np.where(counts > 0, len(label_ids) / (present * np.maximum(counts, 1)), 0).astype(
        np.float32
    )
