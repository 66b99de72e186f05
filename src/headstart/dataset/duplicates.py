"""Which pictures are near-identical, in any orientation, without comparing all pairs.

Candidates are pictures whose 64-bit perceptual hashes differ in few bits. They are found by bands:
if two hashes differ in at most r bits and are cut into r + 1 bands, one band is equal (the
multi-index of Norouzi, Punjani and Fleet, "Fast Search in Hamming Space with Multi-Index Hashing",
2012). A candidate pair counts only if the two thumbnails agree, in grey and in colour, because
hashes of pictures with little in them, such as silhouettes, agree by chance and would chain into
giant clusters.

The cosine transform of a mirrored picture is that of the picture with some signs changed, and that
of a transposed one is transposed, so one transform gives the hashes of all eight orientations, as
in PDQ (https://github.com/facebook/ThreatExchange/tree/main/pdq). Comparing all of them would take
eight times as long; so pictures are compared in their canonical orientation, in which the left is
brighter than the right, the top than the bottom, and the former more so. Where one of these is
nearly a tie, both ways are tried.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
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


class NearDuplicates(NamedTuple):
    """The cluster of each picture, named by its first member, int64, shape (n,) each.

    Two pictures are in one cluster if and only if a chain of near-identical pairs leads from one to
    the other; `upright` as they are, `turned` also if mirrored or in quarter turns.
    """

    upright: Rows
    turned: Rows


def find_near_duplicates(statistics: NDArray[Any], *, max_bits: int) -> NearDuplicates:
    """Cluster pictures, dtype STATISTICS, shape (n,), by what they look like."""
    forest = Forest(len(statistics))
    every: Rows = np.arange(len(statistics), dtype=np.int64)
    clusters = []
    for turned in (False, True):
        search = _Search(forest, statistics, turned=turned, max_bits=max_bits)
        for band in range(max_bits + 1):
            search.visit(band)
        clusters.append(forest.roots(every))
    return NearDuplicates(*clusters)


class Forest:
    """Disjoint sets of rows: union by the smaller row, so that a set is named by its first."""

    def __init__(self, n: int) -> None:
        self._parents: Rows = np.arange(n, dtype=np.int64)

    def roots(self, rows: Rows) -> Rows:
        """The first member of each row's set, shape (n_rows,)."""
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
    """Each picture as it is; or, if `turned`, in every orientation that may be its canonical one.

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
    """The cosine transforms of turned pictures, shape (n, 8, 8): as `_turn` turns pixels."""
    signs = np.where(np.arange(_HASH_FREQUENCIES) % 2, np.float32(-1), np.float32(1))
    if orientation & 4:
        spectra = spectra.swapaxes(1, 2)
    if orientation & 2:
        spectra = spectra * signs[:, None]
    if orientation & 1:
        spectra = spectra * signs
    return spectra


def _turn(grid: NDArray[np.int64], orientation: int) -> NDArray[np.int64]:
    """A square in one of its eight orientations: transposed, then upside down, then mirrored."""
    if orientation & 4:
        grid = grid.T
    if orientation & 2:
        grid = grid[::-1]
    if orientation & 1:
        grid = grid[:, ::-1]
    return grid


def _turns(side: int) -> Rows:
    """Where each pixel of a turned square comes from, shape (8, side × side)."""
    grid = np.arange(side * side, dtype=np.int64).reshape(side, side)
    return np.stack([_turn(grid, orientation).ravel() for orientation in range(_ORIENTATIONS)])


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
        small = (sizes > 1) & (sizes <= _SMALL_BUCKET)
        self._visit_small(order, starts[small], sizes[small], band)
        large = sizes > _SMALL_BUCKET
        for start, size in zip(starts[large], sizes[large], strict=True):
            self._visit_large(order[start : start + size])

    def _visit_small(self, order: Rows, starts: Rows, sizes: Rows, band: int) -> None:
        """All pairs within buckets, for all buckets at once: each view with the one `step` on."""
        ends = np.repeat(starts + sizes, sizes)
        places = np.arange(len(ends)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        places += np.repeat(starts, sizes)
        for step in range(1, _SMALL_BUCKET):
            inside = places + step < ends
            places, ends = places[inside], ends[inside]
            if not len(places):
                return
            for start in range(0, len(places), _PAIRS_AT_ONCE):
                part = places[start : start + _PAIRS_AT_ONCE]
                self._unite(order[part], order[part + step], band)

    def _visit_large(self, bucket: Rows) -> None:
        """Breadth-first search, a block of views at a time: what is reached leaves the bucket.

        A bucket of frames of one film costs little more than its size, though all its pairs hold.
        """
        frontier: Rows = bucket[:0]
        while len(bucket) > (not len(frontier)):
            block = frontier[:_BLOCK_ROWS] if len(frontier) else bucket[:1]
            frontier = frontier[_BLOCK_ROWS:]
            bucket = bucket[~np.isin(bucket, block)]
            for start in range(0, len(bucket), _PAIRS_AT_ONCE):
                self._unite_blocks(block, bucket[start : start + _PAIRS_AT_ONCE])
            reached = np.isin(self._roots(bucket), self._roots(block))
            frontier = np.union1d(frontier, bucket[reached])
            bucket = bucket[~reached]

    def _unite_blocks(self, first: Rows, second: Rows) -> None:
        """As `_unite`, for every view of `first` with every view of `second`."""
        hashes = self._views.hashes
        wanted = np.bitwise_count(hashes[first][:, None] ^ hashes[second]) <= self._max_bits
        wanted &= self._roots(first)[:, None] != self._roots(second)
        first, second = first[wanted.any(axis=1)], second[wanted.any(axis=0)]
        wanted = wanted[wanted.any(axis=1)][:, wanted.any(axis=0)]
        one, other = self._looks(first), self._looks(second)
        wanted &= _alike(
            one.greys @ other.greys.T, one.colours @ other.colours.T, one.as_columns(), other
        )
        rows, columns = np.nonzero(wanted)
        self._join(first[rows], second[columns])

    def _unite(self, first: Rows, second: Rows, band: int) -> None:
        """Unite the pictures of views first[i] and second[i] if they are alike, for every i."""
        different = self._views.hashes[first] ^ self._views.hashes[second]
        wanted = np.bitwise_count(different) <= self._max_bits
        for mask in self._masks[:band]:
            wanted &= (different & mask) != 0  # equal in an earlier band: seen there
        first, second = first[wanted], second[wanted]
        apart = self._roots(first) != self._roots(second)
        first, second = first[apart], second[apart]
        one, other = self._looks(first), self._looks(second)
        greys, colours = one.greys * other.greys, one.colours * other.colours
        same = _alike(greys.sum(axis=1), colours.sum(axis=1), one, other)
        self._join(first[same], second[same])

    def _roots(self, views: Rows) -> Rows:
        return self._forest.roots(self._views.rows[views])

    def _join(self, first: Rows, second: Rows) -> None:
        self._forest.join(self._views.rows[first], self._views.rows[second])

    def _looks(self, views: Rows) -> "_Looks":
        rows, turns = self._views.rows[views][:, None], self._views.orientations[views]
        greys = self._thumbnails[rows, _GREY_TURNS[turns]].astype(np.float32)
        means = greys.mean(axis=1)
        greys -= means[:, None]
        colours = self._colours[rows, _COLOUR_TURNS[turns]].astype(np.float32) - NO_COLOUR
        return _Looks(
            greys,
            colours,
            means,
            np.square(greys).sum(axis=1),
            np.square(colours).sum(axis=1),
            self._leeways[rows[:, 0]],
        )


@dataclass(frozen=True)
class _Looks:
    """Thumbnails in the orientations of n views, with numbers of each, shape (n,).

    `greys`, float32 (n, 256), are less their means; `colours`, float32 (n, 32), less NO_COLOUR.
    """

    greys: NDArray[np.float32]
    colours: NDArray[np.float32]
    means: NDArray[np.float32]
    grey_squares: NDArray[np.float32]
    colour_squares: NDArray[np.float32]
    leeways: NDArray[np.float32]

    def as_columns(self) -> "_Looks":
        """The same with numbers a view as columns, to stand against every other view."""
        return _Looks(
            self.greys,
            self.colours,
            self.means[:, None],
            self.grey_squares[:, None],
            self.colour_squares[:, None],
            self.leeways[:, None],
        )


def _alike(
    grey_products: NDArray[np.float32],
    colour_products: NDArray[np.float32],
    one: _Looks,
    other: _Looks,
) -> NDArray[np.bool_]:
    """Whether views show one picture, from the inner products of their greys and their colours.

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


def groups_of_equals(keys: NDArray[np.generic]) -> Iterator[Rows]:
    """Rows with the same key, for every key that occurs more than once."""
    order = np.argsort(keys, kind="stable")
    borders = np.flatnonzero(keys[order][1:] != keys[order][:-1]) + 1
    for rows in np.split(order, borders):
        if len(rows) > 1:
            yield rows
