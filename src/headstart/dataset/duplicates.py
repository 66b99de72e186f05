"""Groups of images that share a split: copies, near copies, and what the user grouped.

A group's key is the user's name for it, else the smallest hash of its members; so only a newcomer
that joins or bridges groups can move an image.

Near copies are found in any orientation, without comparing all pairs. Candidates are pictures whose
64-bit perceptual hashes differ in few bits. They are found by bands: if two hashes differ in at
most r bits and are cut into r + 1 bands, one band is equal (the multi-index of Norouzi, Punjani and
Fleet, "Fast Search in Hamming Space with Multi-Index Hashing", 2012). A candidate pair counts only
if the two thumbnails agree, in grey and in colour, because hashes of pictures with little in them,
such as silhouettes, agree by chance and would chain into giant groups.

The cosine transform of a mirrored picture is that of the picture with some signs changed, and that
of a transposed one is transposed, so one transform gives the hashes of all eight orientations, as
in PDQ (https://github.com/facebook/ThreatExchange/tree/main/pdq). Comparing all of them would take
eight times as long; so pictures are compared in their canonical orientation, in which the left is
brighter than the right, the top than the bottom, and the former more so. Where one of these is
nearly a tie, both ways are tried.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn

from headstart.dataset.image_statistics import COLOUR_SIDE, NO_COLOUR, THUMBNAIL_SIDE

# The measurements behind these are in docs/data.md.
MIN_CORRELATION = 0.985
"""Of two 16 × 16 grey thumbnails."""
MAX_COLOUR_DIFFERENCE, MAX_RELATIVE_COLOUR_DIFFERENCE = 1.5, 0.08
"""Root mean square in levels, between the colours (Cb and Cr, 4 × 4 each) of one picture and those
of the other made as strong; or as a fraction of these, where colours are strong."""
SMALL_SIDE_PX = 64
"""JPEG keeps the colours of a smaller picture (shorter side) worse, in proportion: the differences
allowed grow so."""
# As root mean squares of levels: between flat pictures, and between one that has no colour and one
# that has.
_MAX_FLAT_DIFFERENCE, _MAX_GREY_DIFFERENCE = 1.0, 3.0
_FAINT = 3.0  # coefficient: JPEG and resizing change as much, so less counts as none
_TIE = 0.05  # of the norm of the coefficients

_HASH_BITS, _HASH_FREQUENCIES = 64, 8
_ORIENTATIONS = 8
_SPECTRA_AT_ONCE = 1 << 12
_SMALL_BUCKET = 2048
_PAIRS_AT_ONCE = 1 << 13
_BLOCK_ROWS = 256

Rows = NDArray[np.int64]
Levels = NDArray[np.uint8]


@dataclass(frozen=True)
class Groups:
    """Groups of n images: `keys[i]` names the group of image i; flags are bool, shape (n,).

    `duplicates` is the duplicate group (copies and near copies) of each image, as the row of its
    first member. Copies under several labels conflict only if they are neither mirrored nor turned,
    for that may be what tells two classes from each other, such as arrows to the left and to the
    right.
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
    """Group images (dtype STATISTICS) by their bytes, their pictures, and the user's groups."""
    n = len(statistics)
    every: Rows = np.arange(n, dtype=np.int64)
    hashes = np.ascontiguousarray(statistics["sha256"]).view("V32").ravel()
    _, first_copies, copy_of = np.unique(hashes, return_index=True, return_inverse=True)
    near = find_near_duplicates(statistics[first_copies], max_bits=max_bits)
    near_of, upright_of = near.turned[copy_of], near.upright[copy_of]
    forest = Forest(n)
    # Copies come in the order of their hashes; joined, a group is named by its first member.
    for rows in groups_of_equals(near_of):
        forest.join(rows[1:], np.full(len(rows) - 1, rows[0]))
    duplicates = forest.roots(every)

    rows_named = np.array([row for row, name in enumerate(user_groups) if name], dtype=np.int64)
    numbers: dict[str | None, int] = {}
    names = (user_groups[row] for row in rows_named.tolist())
    codes = np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)
    for members in groups_of_equals(codes):
        rows = rows_named[members]
        forest.join(rows[1:], np.full(len(rows) - 1, rows[0]))
    groups = forest.roots(every).tolist()

    smallest: dict[int, tuple[bool, str]] = {}  # the user's names come before hashes
    for row, group in enumerate(groups):
        user = user_groups[row]
        name = statistics["sha256"][row].tobytes().hex() if user is None else user
        smallest[group] = min(smallest.get(group, (user is None, name)), (user is None, name))
    conflicts = np.zeros(n, dtype=bool)
    for rows in groups_of_equals(upright_of):
        conflicts[rows] = len(np.unique(label_ids[rows])) > 1
    return Groups(
        keys=[smallest[group][1] for group in groups],
        duplicates=duplicates,
        exact_duplicates=np.bincount(copy_of)[copy_of] > 1,
        near_duplicates=np.bincount(near.turned)[near_of] > 1,
        label_conflict=conflicts,
    )


def groups_of_equals(keys: NDArray[np.generic]) -> Iterator[Rows]:
    """Yield the rows with the same key, for every key that occurs more than once."""
    order = np.argsort(keys, kind="stable")
    borders = np.flatnonzero(keys[order][1:] != keys[order][:-1]) + 1
    for rows in np.split(order, borders):
        if len(rows) > 1:
            yield rows


def straddling(groups: Sequence[str], splits: Sequence[str]) -> list[str]:
    """Return the keys of groups that lie in more than one split, sorted: the leaks of a split."""
    pairs = set(zip(groups, splits, strict=True))
    counts = Counter(group for group, _ in pairs)
    return sorted(group for group, count in counts.items() if count > 1)


class NearDuplicates(NamedTuple):
    """The group of each picture, as the row of its first member, int64, shape (n,) each.

    Two pictures are in one group if and only if a chain of near-identical pairs leads from one to
    the other; `upright` as they are, `turned` also if mirrored or in quarter turns.
    """

    upright: Rows
    turned: Rows


def find_near_duplicates(statistics: NDArray[Any], *, max_bits: int) -> NearDuplicates:
    """Group pictures, dtype STATISTICS, shape (n,), that are near-identical."""
    forest = Forest(len(statistics))
    every: Rows = np.arange(len(statistics), dtype=np.int64)
    groups = []
    for turned in (False, True):
        search = _Search(forest, statistics, turned=turned, max_bits=max_bits)
        for band in range(max_bits + 1):
            search.visit(band)
        groups.append(forest.roots(every))
    return NearDuplicates(*groups)


class Forest:
    """Disjoint sets of rows: union by the smaller row, so that a set is named by its first."""

    def __init__(self, n: int) -> None:
        self._parents: Rows = np.arange(n, dtype=np.int64)

    def roots(self, rows: Rows) -> Rows:
        """Return the first member of each row's set, shape (n_rows,)."""
        roots = self._parents[rows]
        while not np.array_equal(higher := self._parents[roots], roots):
            roots = higher
        self._parents[rows] = roots
        return roots

    def join(self, first: Rows, second: Rows) -> None:
        """Unite the sets of first[i] and second[i], for every i."""
        parents = self._parents
        for one, other in zip(self.roots(first).tolist(), self.roots(second).tolist(), strict=True):
            low, high = sorted((self._root(one), self._root(other)))
            parents[high] = low

    def _root(self, row: int) -> int:
        while (parent := int(self._parents[row])) != row:
            row = parent
        return row


@dataclass(frozen=True)
class _Views:
    """Pictures in orientations in which they are compared: shape (n_views,) each."""

    rows: Rows
    orientations: Rows
    hashes: NDArray[np.uint64]


def _views(thumbnails: Levels, *, turned: bool) -> _Views:
    """Return each picture as it is; or, if `turned`, in each orientation that may be canonical.

    The 64-bit hash says which low frequencies of the cosine transform are positive (Zauner,
    "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, has their median in
    place of zero, which changes with the orientation). What vanishes in a symmetric picture is not
    positive in any copy of it.
    """
    rows, orientations, hashes = [], [], []
    for start in range(0, max(1, len(thumbnails)), _SPECTRA_AT_ONCE):
        part = thumbnails[start : start + _SPECTRA_AT_ONCE].astype(np.float32)
        spectra = dctn(part.reshape(-1, THUMBNAIL_SIDE, THUMBNAIL_SIDE), axes=(1, 2), norm="ortho")
        spectra = spectra[:, :_HASH_FREQUENCIES, :_HASH_FREQUENCIES]
        spectra[:, 0, 0] = 0  # brightness
        ties = -np.maximum(_FAINT, _TIE * np.sqrt(np.square(spectra).sum(axis=(1, 2))))
        for orientation in range(_ORIENTATIONS if turned else 1):
            seen = _turn_spectra(spectra, orientation)
            right, down = seen[:, 0, 1], seen[:, 1, 0]
            canonical = (right >= ties) & (down >= ties) & (right - down >= ties)
            chosen = np.flatnonzero(canonical | (not turned))
            rows.append(start + chosen)
            orientations.append(np.full(len(chosen), orientation))
            bits = (seen > _FAINT)[chosen].reshape(-1, _HASH_BITS)
            hashes.append(np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64))
    return _Views(np.concatenate(rows), np.concatenate(orientations), np.concatenate(hashes))


def _turn_spectra(spectra: NDArray[np.float32], orientation: int) -> NDArray[np.float32]:
    """Return the spectra of turned pictures, shape (n, 8, 8); turned as `_turns` turns pixels."""
    signs = np.where(np.arange(_HASH_FREQUENCIES) % 2, np.float32(-1), np.float32(1))
    if orientation & 4:
        spectra = spectra.swapaxes(1, 2)
    if orientation & 2:
        spectra = spectra * signs[:, None]
    if orientation & 1:
        spectra = spectra * signs
    return spectra


def _turns(side: int) -> Rows:
    """Return where each pixel of a turned square comes from, shape (8, side × side).

    An orientation's bits say: transposed, then upside down, then mirrored.
    """
    turns = []
    for orientation in range(_ORIENTATIONS):
        grid = np.arange(side * side, dtype=np.int64).reshape(side, side)
        if orientation & 4:
            grid = grid.T
        if orientation & 2:
            grid = grid[::-1]
        if orientation & 1:
            grid = grid[:, ::-1]
        turns.append(grid.ravel())
    return np.stack(turns)


_GREY_TURNS = _turns(THUMBNAIL_SIDE)
_COLOUR_TURNS = np.hstack([_turns(COLOUR_SIDE), _turns(COLOUR_SIDE) + COLOUR_SIDE**2])


class _Search:
    """Goes over the bands of all hashes, and unites pictures that are near-identical."""

    def __init__(
        self, forest: Forest, statistics: NDArray[Any], *, turned: bool, max_bits: int
    ) -> None:
        self._forest, self._max_bits = forest, max_bits
        self._thumbnails, self._colours = statistics["thumbnail"], statistics["colours"]
        sides = np.maximum(1, np.minimum(statistics["width"], statistics["height"]))
        self._leeways = np.maximum(1, SMALL_SIDE_PX / sides).astype(np.float32)
        self._views = _views(self._thumbnails, turned=turned)
        edges = [round(_HASH_BITS * i / (max_bits + 1)) for i in range(max_bits + 2)]
        self._masks = [
            np.uint64(((1 << (high - low)) - 1) << low) for low, high in itertools.pairwise(edges)
        ]

    def visit(self, band: int) -> None:
        """Unite all near-identical pictures with views whose hashes are equal in this band."""
        values = self._views.hashes & self._masks[band]
        order = np.argsort(values, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(values[order]) != 0][: len(order)])
        sizes = np.diff(np.r_[starts, len(order)])
        large = sizes > _SMALL_BUCKET

        # All pairs within small buckets, for all of these at once: each view with the one `step`
        # after it.
        small = (sizes > 1) & ~large
        lengths = sizes[small]
        ends = np.repeat(starts[small] + lengths, lengths)
        indices = np.arange(len(ends)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        indices += np.repeat(starts[small], lengths)
        for step in range(1, _SMALL_BUCKET):
            inside = indices + step < ends
            indices, ends = indices[inside], ends[inside]
            if not len(indices):
                break
            for start in range(0, len(indices), _PAIRS_AT_ONCE):
                part = indices[start : start + _PAIRS_AT_ONCE]
                first, second = order[part], order[part + step]
                different = self._views.hashes[first] ^ self._views.hashes[second]
                wanted = np.bitwise_count(different) <= self._max_bits
                for mask in self._masks[:band]:
                    wanted &= (different & mask) != 0  # equal in an earlier band: seen there
                first, second = first[wanted], second[wanted]
                apart = self._roots(first) != self._roots(second)
                first, second = first[apart], second[apart]
                one, other = self._turned(first), self._turned(second)
                greys, colours = one.greys * other.greys, one.colours * other.colours
                same = _are_near(greys.sum(axis=1), colours.sum(axis=1), one, other)
                self._join(first[same], second[same])
        for start, size in zip(starts[large], sizes[large], strict=True):
            self._search_bucket(order[start : start + size])

    def _search_bucket(self, bucket: Rows) -> None:
        """Unite near-identical pictures with views in a large bucket.

        Breadth-first search, a block of views at a time: what is reached leaves the bucket. A
        bucket of frames of one film costs little more than its size, though all its pairs hold.
        """
        hashes = self._views.hashes
        frontier: Rows = bucket[:0]
        while len(bucket) > (not len(frontier)):
            block = frontier[:_BLOCK_ROWS] if len(frontier) else bucket[:1]
            frontier = frontier[_BLOCK_ROWS:]
            bucket = bucket[~np.isin(bucket, block)]
            for start in range(0, len(bucket), _PAIRS_AT_ONCE):
                first, second = block, bucket[start : start + _PAIRS_AT_ONCE]
                wanted = np.bitwise_count(hashes[first][:, None] ^ hashes[second]) <= self._max_bits
                wanted &= self._roots(first)[:, None] != self._roots(second)
                first, second = first[wanted.any(axis=1)], second[wanted.any(axis=0)]
                wanted = wanted[wanted.any(axis=1)][:, wanted.any(axis=0)]
                one, other = self._turned(first), self._turned(second)
                # Each of these against each of the others.
                columns = replace(
                    one,
                    means=one.means[:, None],
                    grey_squares=one.grey_squares[:, None],
                    colour_squares=one.colour_squares[:, None],
                    leeways=one.leeways[:, None],
                )
                greys, colours = one.greys @ other.greys.T, one.colours @ other.colours.T
                rows, others = np.nonzero(wanted & _are_near(greys, colours, columns, other))
                self._join(first[rows], second[others])
            reached = np.isin(self._roots(bucket), self._roots(block))
            frontier = np.union1d(frontier, bucket[reached])
            bucket = bucket[~reached]

    def _roots(self, views: Rows) -> Rows:
        return self._forest.roots(self._views.rows[views])

    def _join(self, first: Rows, second: Rows) -> None:
        self._forest.join(self._views.rows[first], self._views.rows[second])

    def _turned(self, views: Rows) -> "_TurnedThumbnails":
        rows, turns = self._views.rows[views][:, None], self._views.orientations[views]
        greys = self._thumbnails[rows, _GREY_TURNS[turns]].astype(np.float32)
        means = greys.mean(axis=1)
        greys -= means[:, None]
        colours = self._colours[rows, _COLOUR_TURNS[turns]].astype(np.float32) - NO_COLOUR
        return _TurnedThumbnails(
            greys,
            colours,
            means,
            np.square(greys).sum(axis=1),
            np.square(colours).sum(axis=1),
            self._leeways[rows[:, 0]],
        )


@dataclass(frozen=True)
class _TurnedThumbnails:
    """Thumbnails in the orientations of n views, with numbers of each, shape (n,).

    `greys`, float32 (n, 256), are less their means; `colours`, float32 (n, 32), less NO_COLOUR.
    """

    greys: NDArray[np.float32]
    colours: NDArray[np.float32]
    means: NDArray[np.float32]
    grey_squares: NDArray[np.float32]
    colour_squares: NDArray[np.float32]
    leeways: NDArray[np.float32]


def _are_near(
    grey_products: NDArray[np.float32],
    colour_products: NDArray[np.float32],
    one: _TurnedThumbnails,
    other: _TurnedThumbnails,
) -> NDArray[np.bool_]:
    """Return whether views show one picture, given the inner products of greys and of colours.

    Their greys correlate, and their colours are the same but for their strength; or one is the
    other without its colours; or both are flat, of one grey and colour.
    """
    distances = (one.grey_squares + other.grey_squares - 2 * grey_products) / THUMBNAIL_SIDE**2
    distances = distances + np.square(one.means - other.means)
    norms = np.sqrt(one.grey_squares * other.grey_squares)
    correlated = (norms > 0) & (grey_products >= MIN_CORRELATION * norms)
    # The stronger colours less what they share with the weaker: their distance from the line
    # through these, since saturation and contrast scale colours.
    weaker = np.minimum(one.colour_squares, other.colour_squares)
    stronger = np.maximum(one.colour_squares, other.colour_squares)
    shared = np.square(np.maximum(colour_products, 0)) / np.maximum(weaker, 1)
    leeways = np.square(np.maximum(one.leeways, other.leeways))
    pale = 2 * COLOUR_SIDE**2 * MAX_COLOUR_DIFFERENCE**2 * leeways
    most = np.maximum(pale, MAX_RELATIVE_COLOUR_DIFFERENCE**2 * leeways * stronger)
    same_colour = stronger - shared <= most
    same_but_grey = (weaker <= pale) & (distances <= _MAX_GREY_DIFFERENCE**2)
    flat = distances <= _MAX_FLAT_DIFFERENCE**2
    return np.asarray(correlated & (same_colour | same_but_grey) | same_colour & flat)
