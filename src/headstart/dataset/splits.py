"""Which split a duplicate group belongs to: fractions that hold in every class, and nobody moves.

A group's key has a hash in [0, 1), and each class two thresholds on it: train lies
below `validation_from`, test from `test_from` on. They are chosen when a class is first seen, so
that its fractions hold to within one group, and kept in data/splits.csv; from then on neither the
order nor the number of images counts, and adding images moves none that is there. A class of the
same name of which none of the first groups is there belongs to another data set, and has a line of
its own.

A group with images of several classes goes by the thresholds of the first of them in splits.csv,
where the rarest stands first and classes seen later follow: what is common can make up for it.

What moves all the same, because its group or the fractions have changed, is reported: a stage's
outputs are gone before it runs again, so former splits are kept in the main checkout's
`.headstart/`, one file for each seed and set of fractions. It keeps images that are gone:
`data.source` may name another set of images, and then the first one again.
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

from headstart.common.errors import DataError
from headstart.common.files import of_cell, sha256_of_json, write_csv
from headstart.dataset.manifest import Manifest
from headstart.params.split import SPLITS, Split, SplitParams

COLUMNS = ("seed", *SPLITS, "class", "first_groups", "draw", "validation_from", "test_from")
# Before a class was told from one of the same name in another data set.
_FORMER_COLUMNS = tuple(name for name in COLUMNS if name != "first_groups")

# Another draw of the hash is another order of the groups. With one order alone, the thresholds of a
# class of five would lie anywhere, and a thousand newcomers would be split by them. The first is
# taken where it will do, as nearly always for a class that is not small: splits went by it before
# there were thresholds, and few groups move when an image of another class joins them.
_MAX_DRAWS = 256
_MAX_HASHES = 200_000
_FEW_GROUPS = 30
_GOOD_ENOUGH, _GOOD_ENOUGH_OF_FEW = 0.15, 0.07
_STEP = 2.0**-48
_FIRST_GROUPS = 12


class Key(NamedTuple):
    """What thresholds were chosen for: the seed, the fractions, the class.

    Attributes:
        first_groups: hashes of some groups that the class had when it was first seen, by which it
            is known again; none in files of before.
    """

    seed: int
    train: float
    validation: float
    test: float
    label: str
    first_groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Thresholds:
    """A class's thresholds on the hashes of its groups in a draw."""

    draw: int
    validation_from: float
    test_from: float

    def split_of(self, group: str, *, seed: int) -> Split:
        """Return the split of all members of a group."""
        value = uniform_hash(group, seed=seed, draw=self.draw)
        if value < self.validation_from:
            return "train"
        return "validation" if value < self.test_from else "test"


@dataclass(frozen=True)
class SplitAssignment:
    """The split of each image, and all thresholds known now, in the order of splits.csv."""

    splits: list[Split]
    thresholds: dict[Key, Thresholds]


def uniform_hash(group: str, *, seed: int, draw: int = 0) -> float:
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

    A given split is kept, and an image without one follows its group's given members. Where images
    are given as train and test but none as validation, say, validation is taken from train. What is
    left goes by thresholds: `known` ones, else new ones that bring each class, given images
    included, as near to its fractions as whole groups allow.
    """
    shares = np.array([fractions.train, fractions.validation, fractions.test])
    kinds = {split for split in given if split is not None}
    missing = set(SPLITS) - kinds if len(kinds) > 1 or (kinds and None not in given) else set()
    if missing:
        shares = np.array([0 if s not in missing else shares[i] for i, s in enumerate(SPLITS)])
        shares[0] = 1 - shares[1:].sum()
    of_group: dict[str, Split] = {}
    for group, split in zip(groups, given, strict=True):
        if split is not None:
            of_group[group] = min(of_group.get(group, split), split, key=SPLITS.index)
    fixed = [split or of_group.get(group) for group, split in zip(groups, given, strict=True)]
    if missing:
        fixed = [None if split == "train" else split for split in fixed]

    sizes = Counter(labels)
    hashes: dict[str, list[str]] = {
        label: sorted({hashlib.sha256(g.encode()).hexdigest()[:8] for g in of_class})
        for label, of_class in _by_class(groups, labels).items()
    }
    keys: dict[str, Key] = {}
    train, validation, test = shares.tolist()
    for each in known:
        is_same = not each.first_groups or not {*each.first_groups}.isdisjoint(
            hashes.get(each.label, ())
        )
        if each[:4] == (seed, train, validation, test) and each.label in sizes and is_same:
            keys.setdefault(each.label, each)
    seen = list(keys)
    new = sorted(sizes.keys() - set(seen), key=lambda label: (sizes[label], label))
    for label in new:
        keys[label] = Key(
            seed, train, validation, test, label, tuple(hashes[label][:_FIRST_GROUPS])
        )
    rank = {label: index for index, label in enumerate([*seen, *new])}
    counts = {label: np.zeros(len(SPLITS), np.int64) for label in rank}  # of what has a split
    members: dict[str, Counter[str]] = defaultdict(Counter)  # of each other group, by class
    for group, label, split in zip(groups, labels, fixed, strict=True):
        if split is None:
            members[group][label] += 1
        else:
            counts[label][SPLITS.index(split)] += 1
    groups_of: dict[str, list[str]] = defaultdict(list)
    for group in sorted(members):
        groups_of[min(members[group], key=rank.__getitem__)].append(group)

    thresholds, split_of = dict(known), dict[str, Split]()
    for label in rank:
        own = groups_of[label]
        if own and keys[label] not in thresholds:
            classes = sorted({other for group in own for other in members[group]})
            images = np.array([[members[group][c] for c in classes] for group in own], np.int32)
            already = np.array([counts[c] for c in classes])
            first = classes.index(label)
            thresholds[keys[label]] = _choose_thresholds(own, images, already, first, shares, seed)
        for group in own:
            split_of[group] = thresholds[keys[label]].split_of(group, seed=seed)
            for other, count in members[group].items():
                counts[other][SPLITS.index(split_of[group])] += count
    splits = [split or split_of[group] for group, split in zip(groups, fixed, strict=True)]
    return SplitAssignment(splits, thresholds)


def _by_class(groups: Sequence[str], labels: Sequence[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for group, label in zip(groups, labels, strict=True):
        found[label].add(group)
    return found


def _choose_thresholds(
    groups: Sequence[str],
    images: NDArray[np.int32],
    counts: NDArray[np.int64],
    first: int,
    shares: NDArray[np.float64],
    seed: int,
) -> Thresholds:
    """Return the thresholds that split the groups best.

    In every draw the groups are cut where the class has its quotas, with one group at least in each
    split. The best draw has counts of all classes near their quotas, and thresholds near the
    fractions themselves, by which newcomers are split.

    Args:
        images: of each group by class, shape (n_groups, n_classes).
        counts: images of each class that have a split already, shape (n_classes, 3).
        first: column of the class whose thresholds these are; every group has images of it.
        shares: the fractions, shape (3,).
    """
    n = len(groups)
    free = images.sum(axis=0)
    sizes = free + counts.sum(axis=1)
    wanted = np.maximum(shares * sizes[:, None] - counts, 0)
    wanted *= (free / wanted.sum(axis=1))[:, None]
    nominal = shares.cumsum()[:2]
    # How many groups a split must have; the first to go without is validation.
    need = ((counts[first] == 0) & (shares > 0)).astype(int).tolist()
    for split in (1, 2):
        if sum(need) > n:
            need[split] = 0
    best, chosen = np.inf, Thresholds(0, float(nominal[0]), float(nominal[1]))
    for draw in range(min(_MAX_DRAWS, 1 + _MAX_HASHES // n)):
        hashes = np.array([uniform_hash(group, seed=seed, draw=draw) for group in groups])
        order = np.argsort(hashes)
        sums = np.vstack([np.zeros_like(images[:1]), images[order].cumsum(axis=0)])
        targets = wanted[first].cumsum()[:2]
        cuts = np.abs(sums[:, first, None] - targets).argmin(axis=0).tolist()
        cuts[0] = min(max(cuts[0], need[0]), n - need[1] - need[2])
        cuts[1] = min(max(cuts[1], cuts[0] + need[1]), n - need[2])
        # From just above the last group below a cut to the first group above it.
        low = np.r_[0.0, hashes[order] + _STEP][cuts]
        high = np.r_[hashes[order], 1.0][cuts]
        found = Thresholds(draw, *np.clip(nominal, low, high).tolist())
        got = np.diff(sums[[0, *cuts, n]], axis=0).T
        misfit = (np.maximum(np.abs(got - wanted) - 1, 0) / sizes[:, None]).max()
        distance = np.abs(nominal - (found.validation_from, found.test_from)).max()
        if misfit + distance < best:
            best, chosen = misfit + distance, found
        if best < (_GOOD_ENOUGH if n >= _FEW_GROUPS else _GOOD_ENOUGH_OF_FEW):
            break
    return chosen


def read_thresholds(path: Path) -> dict[Key, Thresholds]:
    """Read splits.csv, in its order; a file that is not there knows of no class.

    Raises:
        DataError: the file is damaged, or gives a class thresholds twice.
    """
    thresholds: dict[Key, Thresholds] = {}
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            if tuple(reader.fieldnames or ()) not in (COLUMNS, _FORMER_COLUMNS):
                raise ValueError(f"its columns must be {','.join(COLUMNS)}")
            for row in reader:
                line = reader.line_num
                if None in row or None in row.values():
                    raise ValueError(f"it must have {len(reader.fieldnames or ())} values")
                train, validation, test = (float(row[split]) for split in SPLITS)
                label, first = of_cell(row["class"]), tuple(row.get("first_groups", "").split())
                key = Key(int(row["seed"]), train, validation, test, label, first)
                found = Thresholds(
                    int(row["draw"]), float(row["validation_from"]), float(row["test_from"])
                )
                if not 0 <= found.validation_from <= found.test_from <= 1 or found.draw < 0:
                    raise ValueError("thresholds must lie in [0, 1], in order")
                if not abs(train + validation + test - 1) < 1e-6:
                    raise ValueError("train, validation and test must sum to 1")
                if thresholds.setdefault(key, found) != found:
                    raise ValueError(f"class {key.label!r} is there twice; keep the first line")
    except FileNotFoundError:
        return {}
    except (csv.Error, ValueError) as error:
        raise DataError(
            f"{path} must say by which thresholds each class is split, but line {line} cannot be "
            f"read ({error}): restore the file with `git checkout`, or delete every line but the "
            "header to split everything anew"
        ) from None
    return thresholds


def write_thresholds(path: Path, thresholds: Mapping[Key, Thresholds]) -> None:
    """Write splits.csv in the order given, as an atomic write."""
    rows = [
        (*key[:-1], " ".join(key.first_groups), t.draw, t.validation_from, t.test_from)
        for key, t in thresholds.items()
    ]
    write_csv(path, COLUMNS, rows)


@dataclass(frozen=True, slots=True)
class Move:
    """An image that is in another split than before, and the group that took it there."""

    path: str
    label: str
    sha256: str
    before: str
    now: str
    group: str


def former_splits_file(state_folder: Path, *, seed: int, fractions: SplitParams) -> Path:
    """Return where the splits of this seed and these fractions are kept."""
    key = sha256_of_json({"seed": seed, "split": fractions.model_dump()})
    return state_folder / "placements" / f"{key[:16]}.csv"


def find_moves(manifest: Manifest, former: Path) -> list[Move]:
    """Return the images that `former` has in another split, in the manifest's order."""
    before = _read_splits(former)
    columns = ("path", "label", "sha256", "split", "group")
    rows = zip(*(manifest.table[name].astype(str) for name in columns), strict=True)
    return [
        Move(path, label, sha256, before[sha256], split, group)
        for path, label, sha256, split, group in rows
        if before.get(sha256, split) != split
    ]


def remember_splits(manifest: Manifest, path: Path) -> None:
    """Keep the split of every image for the next ingest."""
    splits = _read_splits(path) | dict(zip(manifest.sha256, manifest.splits, strict=True))
    write_csv(path, ("sha256", "split"), sorted(splits.items()))


def write_moves(path: Path, moves: list[Move]) -> None:
    """Write the moves as CSV; none give a file with a header alone."""
    rows = [(m.path, m.label, m.sha256, m.before, m.now, m.group) for m in moves]
    write_csv(path, ("path", "label", "sha256", "before", "now", "group"), rows)


def _read_splits(path: Path) -> dict[str, str]:
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            return {row["sha256"]: row["split"] for row in csv.DictReader(stream)}
    except (FileNotFoundError, KeyError, csv.Error, UnicodeDecodeError):
        return {}  # nothing to compare with; a damaged record is written anew
