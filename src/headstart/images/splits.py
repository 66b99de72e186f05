"""Which split a duplicate group belongs to: fractions that hold in every class, and nobody moves.

A group has a position in [0, 1), a hash of its key, and each class two thresholds on it: train lies
below `validation_from`, test from `test_from` on. They are chosen when a class is first seen, so
that its fractions hold to within one group, and kept in data/splits.csv; from then on neither the
order nor the number of images counts, and adding images moves none that is there.
"""

import csv
import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headstart.errors import DataError
from headstart.files import of_cell, write_csv
from headstart.params.images import SPLITS, Split, SplitParams

COLUMNS = ("seed", *SPLITS, "class", "draw", "validation_from", "test_from")

# The thresholds of groups with images of several classes; a class name is never empty.
SEVERAL_CLASSES = ""
# Another draw of the hash is another order of the groups. With one order alone, the thresholds of a
# class of five would lie anywhere, and a thousand newcomers would be split by them. The first is
# taken where it will do, so that most groups stay where they are when another class joins them.
_MAX_DRAWS = 256
_GOOD_ENOUGH = 0.07
_STEP = 2.0**-48


class Key(NamedTuple):
    """What thresholds were chosen for: the seed, the fractions, the class."""

    seed: int
    train: float
    validation: float
    test: float
    label: str


@dataclass(frozen=True, slots=True)
class Thresholds:
    """A class's thresholds on the positions of its groups in a draw of the hash."""

    draw: int
    validation_from: float
    test_from: float

    def split_of(self, group: str, *, seed: int) -> Split:
        """Return the split of all members of a group."""
        place = position(group, seed=seed, draw=self.draw)
        if place < self.validation_from:
            return "train"
        return "validation" if place < self.test_from else "test"


@dataclass(frozen=True)
class SplitAssignment:
    """The split of each image, and all thresholds that are known now."""

    splits: list[Split]
    thresholds: dict[Key, Thresholds]


def position(group: str, *, seed: int, draw: int = 0) -> float:
    """Return a number in [0, 1), uniform over groups and independent between seeds and draws."""
    text = f"{seed}\n{group}\n{draw}" if draw else f"{seed}\n{group}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") * _STEP


def assign_splits(
    groups: Sequence[str],
    labels: Sequence[str],
    given: Sequence[Split | None],
    *,
    seed: int,
    fractions: SplitParams,
    known: Mapping[Key, Thresholds],
) -> SplitAssignment:
    """Assign each of n images, of which the group, the class and perhaps the split are given.

    A given split is kept, and an image without one follows its group's given members. Where every
    image is given a split and none is given, say, validation, the validation images are taken from
    those given as train. What is left goes by thresholds: `known` ones, else new ones that bring
    each class, given images included, as near to its fractions as whole groups allow. Groups with
    images of several classes are assigned first, by thresholds of their own, and then each class
    makes up for what they brought it.
    """
    shares = np.array([fractions.train, fractions.validation, fractions.test])
    missing = set(SPLITS) - set(given) if given and None not in given else set()
    fixed: list[Split | None]
    if missing:
        shares = np.array([0 if s not in missing else shares[i] for i, s in enumerate(SPLITS)])
        shares[0] = 1 - shares[1:].sum()
        fixed = [None if split == "train" else split for split in given]
    else:
        of_group: dict[str, Split] = {}
        for group, split in zip(groups, given, strict=True):
            if split is not None:
                of_group[group] = min(of_group.get(group, split), split, key=SPLITS.index)
        fixed = [split or of_group.get(group) for group, split in zip(groups, given, strict=True)]

    classes = sorted(set(labels))
    column = {label: index for index, label in enumerate(classes)}
    counts = np.zeros((len(classes), len(SPLITS)), np.int64)  # images that have a split already
    members: dict[str, Counter[int]] = defaultdict(Counter)  # of each other group, by class
    for group, label, split in zip(groups, labels, fixed, strict=True):
        if split is None:
            members[group][column[label]] += 1
        else:
            counts[column[label], SPLITS.index(split)] += 1
    strata: dict[str, list[str]] = defaultdict(list)
    for group in sorted(members):
        spans = len(members[group]) > 1
        strata[SEVERAL_CLASSES if spans else classes[next(iter(members[group]))]].append(group)

    thresholds, split_of = dict(known), dict[str, Split]()
    for label in sorted(strata):  # several classes first: no name sorts before the empty one
        key = Key(seed, float(shares[0]), float(shares[1]), float(shares[2]), label)
        if key not in thresholds:
            images = np.zeros((len(strata[label]), len(classes)), np.int64)
            for row, group in enumerate(strata[label]):
                for index, count in members[group].items():
                    images[row, index] = count
            present = np.flatnonzero(images.any(axis=0))
            thresholds[key] = _choose(
                strata[label], images[:, present], counts[present], shares, seed
            )
        for group in strata[label]:
            split_of[group] = thresholds[key].split_of(group, seed=seed)
            for index, count in members[group].items():
                counts[index, SPLITS.index(split_of[group])] += count
    splits = [split or split_of[group] for group, split in zip(groups, fixed, strict=True)]
    return SplitAssignment(splits, thresholds)


def _choose(
    groups: Sequence[str],
    images: NDArray[np.int64],
    counts: NDArray[np.int64],
    shares: NDArray[np.float64],
    seed: int,
) -> Thresholds:
    """Return the thresholds that split the groups best.

    Of the draws, the best has an image of every class in every split, then counts nearest to the
    quotas, and thresholds nearest to the fractions themselves, by which newcomers are split.

    Args:
        images: of each group by class, shape (n_groups, n_classes).
        counts: images of each class that have a split already, shape (n_classes, 3).
        shares: the fractions, shape (3,).
    """
    free = images.sum(axis=0)
    sizes = free + counts.sum(axis=1)
    wanted = np.maximum(shares * sizes[:, None] - counts, 0)
    wanted *= (free / wanted.sum(axis=1))[:, None]
    targets = wanted.sum(axis=0).cumsum()
    n = len(groups)
    # How many groups a split must have at least; the first to go without is validation.
    need = ((counts.min(axis=0) == 0) & (shares > 0)).astype(int).tolist()
    for split in (1, 2):
        if sum(need) > n:
            need[split] = 0
    best: tuple[int, float] | None = None
    chosen = Thresholds(0, *shares.cumsum()[:2].tolist())
    for draw in range(_MAX_DRAWS):
        positions = np.array([position(group, seed=seed, draw=draw) for group in groups])
        order = np.argsort(positions)
        edges = np.r_[0.0, positions[order] + _STEP, 1.0]  # just above each group's position
        sums = np.vstack([np.zeros_like(images[:1]), images[order].cumsum(axis=0)])
        nearest = np.abs(sums.sum(axis=1)[:, None] - targets[:2]).argmin(axis=0)
        first = min(max(int(nearest[0]), need[0]), n - need[1] - need[2])
        second = min(max(int(nearest[1]), first + need[1]), n - need[2])
        validation_from, test_from = (
            float(min(max(nominal, edges[cut]), edges[cut + 1] - _STEP * (cut < n)))
            for nominal, cut in zip(shares.cumsum()[:2], (first, second), strict=True)
        )
        found = np.diff(sums[[0, first, second, n]], axis=0).T
        empty = int(((found + counts == 0) & (shares > 0)).sum())
        misfit = (np.maximum(np.abs(found - wanted) - 1, 0) / sizes[:, None]).max()
        distance = np.abs(shares.cumsum()[:2] - (validation_from, test_from)).max()
        rank = (empty, float(misfit + distance))
        if best is None or rank < best:
            best, chosen = rank, Thresholds(draw, validation_from, test_from)
        if best < (0, _GOOD_ENOUGH):
            break
    return chosen


def read_thresholds(path: Path) -> dict[Key, Thresholds]:
    """Read splits.csv; a file that is not there knows of no class.

    Raises:
        DataError: the file is damaged, or gives a class thresholds twice.
    """
    thresholds: dict[Key, Thresholds] = {}
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise ValueError(f"its columns must be {','.join(COLUMNS)}")
            for row in reader:
                line = reader.line_num
                train, validation, test = (float(row[split]) for split in SPLITS)
                key = Key(int(row["seed"]), train, validation, test, of_cell(row["class"]))
                found = Thresholds(
                    int(row["draw"]), float(row["validation_from"]), float(row["test_from"])
                )
                if not 0 <= found.validation_from <= found.test_from <= 1 or found.draw < 0:
                    raise ValueError("thresholds must lie in [0, 1], in order")
                if thresholds.setdefault(key, found) != found:
                    raise ValueError(f"class {key.label!r} is there twice; keep the first line")
    except FileNotFoundError:
        return {}
    except (csv.Error, ValueError, TypeError) as error:
        raise DataError(
            f"{path} must say by which thresholds each class is split, but line {line} cannot be "
            f"read ({error}): restore the file with `git checkout`, or leave its header alone to "
            "split everything anew"
        ) from None
    return thresholds


def write_thresholds(path: Path, thresholds: Mapping[Key, Thresholds]) -> None:
    """Write splits.csv, sorted, as an atomic write; the same thresholds give the same bytes."""
    rows = [(*key, t.draw, t.validation_from, t.test_from) for key, t in thresholds.items()]
    write_csv(path, COLUMNS, sorted(rows))
