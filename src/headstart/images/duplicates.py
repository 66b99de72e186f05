"""Which pictures are near-identical, without comparing all pairs.

Candidates are pictures whose 64-bit perceptual hashes differ in few bits. They are found by bands:
if two hashes differ in at most r bits and are cut into r + 1 bands, one band is equal (the
multi-index of Norouzi, Punjani and Fleet, "Fast Search in Hamming Space with Multi-Index Hashing",
2012). A candidate pair counts only if the two thumbnails correlate, because hashes of pictures with
little in them, such as silhouettes, agree by chance and would chain into giant clusters.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headstart.images.inspect import THUMBNAIL_SIDE

MIN_CORRELATION = 0.985
"""Of two 16 × 16 grey thumbnails. See docs/data.md for the measurements behind it."""

# Thumbnails that differ by no more than a grey level are the same picture, however flat.
_SAME_PICTURE_LEVELS = 1.0
_HASH_BITS = 64
_PIXELS = THUMBNAIL_SIDE**2
_SMALL_BUCKET = 2048
_PAIRS_AT_ONCE = 1 << 13
_BLOCK_ROWS = 256

Rows = NDArray[np.int64]


def near_duplicate_clusters(
    hashes: NDArray[np.uint64], thumbnails: NDArray[np.uint8], *, max_bits: int
) -> Rows:
    """The cluster of each picture, named by its first member, int64, shape (n,).

    `hashes` has shape (n,), `thumbnails` (n, 256). Two pictures are in one cluster if and only if
    a chain of near-identical pairs leads from one to the other.
    """
    search = _Search(hashes, thumbnails, max_bits)
    for band in range(max_bits + 1):
        search.visit(band)
    return search.forest.roots(np.arange(len(hashes), dtype=np.int64))


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


class _Search:
    """Goes over the bands of all hashes, and unites rows that are near-identical."""

    def __init__(
        self, hashes: NDArray[np.uint64], thumbnails: NDArray[np.uint8], max_bits: int
    ) -> None:
        self.forest = Forest(len(hashes))
        self._hashes, self._thumbnails, self._max_bits = hashes, thumbnails, max_bits
        edges = [round(_HASH_BITS * i / (max_bits + 1)) for i in range(max_bits + 2)]
        self._masks = [
            np.uint64(((1 << (high - low)) - 1) << low) for low, high in itertools.pairwise(edges)
        ]

    def visit(self, band: int) -> None:
        """Unite all near-identical rows whose hashes are equal in this band."""
        values = self._hashes & self._masks[band]
        order = np.argsort(values, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(values[order]) != 0][: len(order)])
        sizes = np.diff(np.r_[starts, len(order)])
        small = (sizes > 1) & (sizes <= _SMALL_BUCKET)
        self._visit_small(order, starts[small], sizes[small], band)
        large = sizes > _SMALL_BUCKET
        for start, size in zip(starts[large], sizes[large], strict=True):
            self._visit_large(order[start : start + size])

    def _visit_small(self, order: Rows, starts: Rows, sizes: Rows, band: int) -> None:
        """All pairs within buckets, for all buckets at once: each row with the one `step` on."""
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
        """Breadth-first search, a block of rows at a time: what is reached leaves the bucket.

        A bucket of frames of one film costs little more than its size, though all its pairs hold.
        """
        frontier: Rows = bucket[:0]
        while len(bucket) > (not len(frontier)):
            block = frontier[:_BLOCK_ROWS] if len(frontier) else bucket[:1]
            frontier = frontier[_BLOCK_ROWS:]
            bucket = bucket[~np.isin(bucket, block)]
            for start in range(0, len(bucket), _PAIRS_AT_ONCE):
                self._unite_blocks(block, bucket[start : start + _PAIRS_AT_ONCE])
            reached = np.isin(self.forest.roots(bucket), self.forest.roots(block))
            frontier = np.union1d(frontier, bucket[reached])
            bucket = bucket[~reached]

    def _unite_blocks(self, first: Rows, second: Rows) -> None:
        """As `_unite`, for every row of `first` with every row of `second`."""
        near = np.bitwise_count(self._hashes[first][:, None] ^ self._hashes[second])
        wanted = near <= self._max_bits
        wanted &= self.forest.roots(first)[:, None] != self.forest.roots(second)
        first, second = first[wanted.any(axis=1)], second[wanted.any(axis=0)]
        wanted = wanted[wanted.any(axis=1)][:, wanted.any(axis=0)]
        one, other = _centred(self._thumbnails[first]), _centred(self._thumbnails[second])
        wanted &= _alike(one.values @ other.values.T, one.of_rows(), other)
        rows, columns = np.nonzero(wanted)
        self.forest.join(first[rows], second[columns])

    def _unite(self, first: Rows, second: Rows, band: int) -> None:
        """Unite first[i] with second[i] if they are near-identical, for every i."""
        different = self._hashes[first] ^ self._hashes[second]
        wanted = np.bitwise_count(different) <= self._max_bits
        for mask in self._masks[:band]:
            wanted &= (different & mask) != 0  # equal in an earlier band: seen there
        first, second = first[wanted], second[wanted]
        apart = self.forest.roots(first) != self.forest.roots(second)
        first, second = first[apart], second[apart]
        one, other = _centred(self._thumbnails[first]), _centred(self._thumbnails[second])
        same = _alike((one.values * other.values).sum(axis=1), one, other)
        self.forest.join(first[same], second[same])


@dataclass(frozen=True)
class _Centred:
    """Thumbnails less their means, float32 (n, 256), with the means and the sums of squares."""

    values: NDArray[np.float32]
    means: NDArray[np.float32]
    squares: NDArray[np.float32]

    def of_rows(self) -> "_Centred":
        """The same with means and squares as columns, to stand against every other thumbnail."""
        return _Centred(self.values, self.means[:, None], self.squares[:, None])


def _centred(thumbnails: NDArray[np.uint8]) -> _Centred:
    values = thumbnails.astype(np.float32)
    means = values.mean(axis=1)
    values -= means[:, None]
    return _Centred(values, means, np.square(values).sum(axis=1))


def _alike(products: NDArray[np.float32], one: _Centred, other: _Centred) -> NDArray[np.bool_]:
    """Whether thumbnails correlate, or differ by no more than a grey level, from their products."""
    distance = one.squares + other.squares - 2 * products
    distance += _PIXELS * np.square(one.means - other.means)
    norms = np.sqrt(one.squares * other.squares)
    correlated = (norms > 0) & (products >= MIN_CORRELATION * norms)
    return np.asarray(correlated | (distance <= _PIXELS * _SAME_PICTURE_LEVELS**2))


def groups_of_equals(keys: NDArray[np.generic]) -> Iterator[Rows]:
    """Rows with the same key, for every key that occurs more than once."""
    order = np.argsort(keys, kind="stable")
    borders = np.flatnonzero(keys[order][1:] != keys[order][:-1]) + 1
    for rows in np.split(order, borders):
        if len(rows) > 1:
            yield rows
