"""Ridge heads in closed form: every fold and penalty of a set of feature blocks from one solution.

A ridge head is least squares on one-hot labels with an L2 penalty (Hoerl and Kennard, 1970), on
features standardised over all rows by shrunk variances; the bias is free. With Z the centred rows
times the roots of their weights, q the unit vector of these roots and H = qq' + Z (Z'Z +
penalty)^-1 Z' the matrix that maps targets to fitted values, the errors on rows F of a head that
was fitted without them are (1 - H_FF)^-1 (1 - H)_F y: exact, as for leaving out one row (Allen,
1974; Hastie, Tibshirani and Friedman, 2009, section 7.10). Where there are fewer features than rows
in a fold, fitting without them is cheaper: one Gram matrix of all rows gives each fold's, by
subtraction.

Scores of least squares are no logits: a temperature, fitted on out-of-fold scores, makes them so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from headstart.heads.fitted import feature_statistics

Floats = NDArray[np.float64]
_CHUNK_ROWS = 4096
# numpy's solvers throughout: scipy brings a BLAS of its own, and the idle threads of one would spin
# beside the other's (four times as slow on two cores).


@dataclass(frozen=True)
class RidgeSolution:
    """Scores of standardised features x are `x @ kernel + bias`; float64 (d, c) and (c,)."""

    kernel: Floats
    bias: Floats


class RidgeProblem:
    """Rows to fit ridge heads on.

    Args:
        features: float32 (n, d).
        label_ids: int64 (n,); the targets are their one-hot rows.
        blocks: name → columns of `features`.

    Attributes:
        mean, variance: float32 (d,), over all rows; the latter shrunk (`feature_statistics`).
    """

    def __init__(
        self,
        features: NDArray[np.float32],
        label_ids: NDArray[np.int64],
        n_classes: int,
        blocks: Mapping[str, slice],
    ) -> None:
        self.mean, self.variance = feature_statistics(features, blocks.values())
        self._rows = np.asarray((features - self.mean) / np.sqrt(self.variance), np.float32)
        self._label_ids, self._n_classes, self._blocks = label_ids, n_classes, dict(blocks)
        self._products: dict[str, Floats] = {}
        self._grams: dict[tuple[bytes, bytes], Floats] = {}

    def columns(self, names: Sequence[str]) -> NDArray[np.int64]:
        """The columns of these blocks, ascending."""
        parts = [np.arange(self._blocks[name].start, self._blocks[name].stop) for name in names]
        return np.sort(np.concatenate(parts))

    def held_out_scores(
        self,
        names: Sequence[str],
        weights: Floats,
        folds: Sequence[NDArray[np.int64]],
        penalties: Sequence[float],
    ) -> list[Floats]:
        """Score the rows of each fold by a head that was fitted on all others.

        Args:
            weights: float64 (n,), all above 0.
            folds: numbers of rows; no row is in two.

        Returns:
            For each penalty float64 (n, c); zeros where a row is in no fold.
        """
        columns = self.columns(names)
        scores = [np.zeros((len(weights), self._n_classes)) for _ in penalties]
        if len(columns) <= min(len(fold) for fold in folds):
            for fold in folds:
                rows = self._rows[np.ix_(fold, columns)]
                solutions = self._solve(columns, weights, fold, penalties)
                for score, solution in zip(scores, solutions, strict=True):
                    score[fold] = rows @ solution.kernel.astype(np.float32) + solution.bias
            return scores
        roots = np.sqrt(weights)
        unit = roots / np.sqrt(weights.sum())
        targets = roots[:, None] * np.eye(self._n_classes)[self._label_ids]
        mean_part = np.outer(unit, unit @ targets)
        is_wide = len(columns) >= len(weights)
        # One eigendecomposition, of ZZ' or Z'Z, serves every penalty.
        if is_wide:
            values, vectors = np.linalg.eigh(self._centred_products(names, weights))
        else:
            rows = self._rows[:, columns].astype(np.float64)
            centred = roots[:, None] * (rows - weights @ rows / weights.sum())
            values, vectors = np.linalg.eigh(centred.T @ centred)
            vectors = centred @ vectors
        values, along = np.maximum(values, 0), vectors.T @ targets
        # 1 - H + qq' is B diag(shrunk) B' where features are many, 1 - B diag(shrunk) B' else.
        shrunk = [(penalty if is_wide else 1) / (values + penalty) for penalty in penalties]
        for fold in folds:
            own = vectors[fold]
            for score, scale in zip(scores, shrunk, strict=True):
                left, errors = (own * scale) @ own.T, own @ (scale[:, None] * along)
                if not is_wide:
                    left, errors = np.eye(len(fold)) - left, targets[fold] - errors
                left -= np.outer(unit[fold], unit[fold])
                without = np.linalg.solve(left, errors - mean_part[fold])
                score[fold] = (targets[fold] - without) / roots[fold, None]
        return scores

    def fit(self, names: Sequence[str], weights: Floats, penalty: float) -> RidgeSolution:
        """Fit on all rows, weights float64 (n,), all above 0."""
        columns = self.columns(names)
        if len(columns) < len(weights):
            return self._solve(columns, weights, np.arange(0), [penalty])[0]
        roots, total = np.sqrt(weights), weights.sum()
        targets = np.eye(self._n_classes)[self._label_ids]
        mean_target = weights @ targets / total
        gram = self._centred_products(names, weights) + penalty * np.eye(len(weights))
        dual = np.linalg.solve(gram, roots[:, None] * (targets - mean_target))
        rows = self._rows[:, columns].astype(np.float64)
        centre = weights @ rows / total
        kernel = (rows - centre).T @ (roots[:, None] * dual)
        return RidgeSolution(kernel, mean_target - centre @ kernel)

    def _solve(
        self,
        columns: NDArray[np.int64],
        weights: Floats,
        left_out: NDArray[np.int64],
        penalties: Sequence[float],
    ) -> list[RidgeSolution]:
        """Fit on all rows but some: the Gram matrix of all, less that of these."""
        every = np.arange(len(weights))
        gram = self._gram(weights, every)[np.ix_(columns, columns)]
        if len(left_out):
            gram -= self._gram(weights, left_out)[np.ix_(columns, columns)]
        kept = weights.copy()
        kept[left_out] = 0
        # Z'Y of one-hot targets: a weighted sum of the rows of each class.
        one_hot = csr_array((kept, self._label_ids, np.arange(len(kept) + 1)))
        one_hot.resize(len(kept), self._n_classes)
        cross = np.zeros((len(columns), self._n_classes))
        for start in range(0, len(kept), _CHUNK_ROWS):
            part = slice(start, start + _CHUNK_ROWS)
            cross += (one_hot[part].T @ self._rows[part, columns].astype(np.float64)).T
        sums, target_sums = cross.sum(axis=1), one_hot.sum(axis=0)
        total = kept.sum()
        gram -= np.outer(sums, sums) / total
        cross -= np.outer(sums, target_sums) / total
        found = []
        for penalty in penalties:
            kernel = np.linalg.solve(gram + penalty * np.eye(len(columns)), cross)
            bias = np.asarray((target_sums - sums @ kernel) / total, np.float64)
            found.append(RidgeSolution(np.asarray(kernel, np.float64), bias))
        return found

    def _gram(self, weights: Floats, chosen: NDArray[np.int64]) -> Floats:
        """Z'Z of some rows and all columns, before they are centred; (d, d), kept."""
        key = weights.tobytes(), chosen.tobytes()
        if key not in self._grams:
            gram = np.zeros((self._rows.shape[1],) * 2)
            # In chunks: a copy of all rows in float64 would be twice as large as they are.
            for start in range(0, len(chosen), _CHUNK_ROWS):
                some = chosen[start : start + _CHUNK_ROWS]
                rows = self._rows[some].astype(np.float64)
                gram += (rows * weights[some, None]).T @ rows
            self._grams[key] = gram
        return self._grams[key]

    def _centred_products(self, names: Sequence[str], weights: Floats) -> Floats:
        """ZZ' of these blocks: a sum over blocks, each of which is computed once; (n, n)."""
        for name in names:
            if name not in self._products:
                rows = self._rows[:, self._blocks[name]].astype(np.float64)
                self._products[name] = rows @ rows.T
        total = self._products[names[0]].copy()
        for name in names[1:]:
            total += self._products[name]
        share, roots = weights / weights.sum(), np.sqrt(weights)
        means = total @ share
        total -= means[:, None]
        total -= means
        total += share @ means
        total *= roots[:, None]
        total *= roots
        return total
