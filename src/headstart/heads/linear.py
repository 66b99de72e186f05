"""Heads that are solved rather than trained: `ridge` and `logistic_regression`.

Both are one dense layer on normalised features, fitted on the rows and feature blocks that a config
names. Logistic regression is scikit-learn's.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from headstart.heads.config import HeadConfig, chosen_layers
from headstart.heads.fitted import DenseWeights, FittedHead, feature_statistics
from headstart.heads.folds import Fold, balanced_weights
from headstart.heads.ridge import RidgeProblem
from headstart.heads.temperature import fit_score_temperature

Floats = NDArray[np.float64]
# A path of penalties costs little more than one: the best of it is chosen out of fold.
RIDGE_PENALTIES = (30.0, 100.0, 300.0, 1000.0, 3000.0)
_MAX_ITERATIONS = 1000
# Of a class without training rows, far below all others.
_ABSENT_LOGIT = -20.0


@dataclass(frozen=True)
class FoldAnswers:
    """What heads of one config say of the rows that they were not fitted on.

    Attributes:
        config: with the penalty that `logits` belong to.
        logits: for each fold float32 (n_views of its validation rows, n_classes).
        temperature: what scores of ridge were divided by; 1 for others.
    """

    config: HeadConfig
    logits: list[NDArray[np.float32]]
    temperature: float


class LinearHeads:
    """Fits linear heads on one set of rows; what fits have in common is computed once.

    Args:
        features: float32 (n, n_views, d); every view is a row.
        label_ids: int64 (n,).
        blocks: layer → columns of `features`.
    """

    def __init__(
        self,
        features: NDArray[np.float32],
        label_ids: NDArray[np.int64],
        n_classes: int,
        blocks: Mapping[str, slice],
    ) -> None:
        self._n_views, dim = features.shape[1:]
        self._rows = features.reshape(-1, dim)
        self._label_ids = np.repeat(label_ids, self._n_views)
        self._n_classes, self._blocks = n_classes, dict(blocks)

    @cached_property
    def _ridge(self) -> RidgeProblem:
        return RidgeProblem(self._rows, self._label_ids, self._n_classes, self._blocks)

    def out_of_fold(
        self, config: HeadConfig, folds: Sequence[Fold], *, path: bool = False
    ) -> list[FoldAnswers]:
        """Answers on each fold's validation rows by a head that was fitted on its training rows.

        Ridge is fitted on all rows but the validation rows, in one go.

        Args:
            path: of ridge, every penalty of RIDGE_PENALTIES, rather than the config's alone.

        Returns:
            One, or with `path` one for each penalty of ridge.
        """
        held_out = [self._views(fold.validation) for fold in folds]
        if config.kind == "logistic_regression":
            heads = [self._regression(config, fold.train) for fold in folds]
            columns = self._columns(config)
            logits = [
                head.logits(self._rows[np.ix_(rows, columns)])
                for head, rows in zip(heads, held_out, strict=True)
            ]
            return [FoldAnswers(config, logits, 1.0)]
        penalties = RIDGE_PENALTIES if path else (config.penalty,)
        names, weights = self._layers(config), self._weights(config, self._label_ids)
        scores: list[list[Floats]] = [[] for _ in penalties]
        start = 0
        while start < len(folds):
            # Repeats of folds hold every row out again: the folds of one repeat at a time.
            end, taken = start, np.zeros(len(self._label_ids), bool)
            while end < len(folds) and not taken[held_out[end]].any():
                taken[held_out[end]] = True
                end += 1
            some = held_out[start:end]
            found = self._ridge.held_out_scores(names, weights, some, penalties)
            for of_penalty, every in zip(scores, found, strict=True):
                of_penalty += [every[rows] for rows in some]
            start = end
        labels = self._label_ids[np.concatenate(held_out)]
        answers = []
        for penalty, of_penalty in zip(penalties, scores, strict=True):
            temperature = fit_score_temperature(np.concatenate(of_penalty), labels)
            logits = [np.asarray(one / temperature, np.float32) for one in of_penalty]
            chosen = config.model_copy(update={"penalty": penalty})
            answers.append(FoldAnswers(chosen, logits, temperature))
        return answers

    def fit(
        self, config: HeadConfig, rows: NDArray[np.int64], temperature: float = 1.0
    ) -> FittedHead:
        """Fit on some of the rows.

        Args:
            rows: their numbers, ascending.
            temperature: of ridge, as `out_of_fold` found it: folded into the dense layer.
        """
        if config.kind == "logistic_regression":
            return self._regression(config, rows)
        chosen = self._views(rows)
        problem = self._ridge
        if len(chosen) < len(self._rows):
            labels = self._label_ids[chosen]
            problem = RidgeProblem(self._rows[chosen], labels, self._n_classes, self._blocks)
        names, weights = self._layers(config), self._weights(config, self._label_ids[chosen])
        solution = problem.fit(names, weights, config.penalty)
        columns = problem.columns(names)
        return FittedHead(
            config=config,
            n_classes=self._n_classes,
            layers=(
                DenseWeights(
                    np.asarray(solution.kernel / temperature, np.float32),
                    np.asarray(solution.bias / temperature, np.float32),
                ),
            ),
            mean=problem.mean[columns],
            variance=problem.variance[columns],
            epochs=1,
        )

    def _regression(self, config: HeadConfig, rows: NDArray[np.int64]) -> FittedHead:
        """Minimise the weighted mean log loss plus l2 / 2 times the kernel's squared norm."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        chosen = self._views(rows)
        features = self._rows[np.ix_(chosen, self._columns(config))]
        mean, variance = None, None
        if config.normalisation == "standardise":
            mean, variance = feature_statistics(features)
        shell = FittedHead(config, self._n_classes, (), mean, variance, epochs=1)
        design = shell.normalised(features).astype(np.float64)
        back = None
        if design.shape[1] > len(design):
            # The penalty keeps the kernel in the span of the rows, where the problem is smaller.
            normalised = design
            design, back = row_space(normalised)
        labels = self._label_ids[chosen]
        weights = self._weights(config, labels)
        present = np.unique(labels)
        # Of two classes scikit-learn fits the difference of the kernels, of twice their norm.
        l2 = config.l2 / 2 if len(present) == 2 else config.l2
        regression = LogisticRegression(C=1 / (l2 * weights.sum()), max_iter=_MAX_ITERATIONS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            regression.fit(design, labels, sample_weight=weights)
        found, bias = regression.coef_.T, regression.intercept_
        if len(present) == 2:
            found, bias = np.hstack([-found / 2, found / 2]), np.r_[-bias / 2, bias / 2]
        if back is not None:
            found = normalised.T @ (back @ found)
        kernel = np.zeros((features.shape[1], self._n_classes), np.float32)
        biases = np.full(self._n_classes, _ABSENT_LOGIT, np.float32)
        kernel[:, present], biases[present] = found, bias
        return FittedHead(
            config, self._n_classes, (DenseWeights(kernel, biases),), mean, variance, epochs=1
        )

    def _views(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of all views of some rows, a row's views together."""
        return np.asarray((rows[:, None] * self._n_views + np.arange(self._n_views)).ravel())

    def _layers(self, config: HeadConfig) -> tuple[str, ...]:
        return chosen_layers(config.layers, tuple(self._blocks))

    def _columns(self, config: HeadConfig) -> NDArray[np.int64]:
        parts = [np.arange(self._rows.shape[1])[self._blocks[name]]
                 for name in self._blocks if name in self._layers(config)]  # fmt: skip
        return np.concatenate(parts)

    def _weights(self, config: HeadConfig, label_ids: NDArray[np.int64]) -> Floats:
        if config.class_weights == "none":
            return np.ones(len(label_ids))
        return balanced_weights(label_ids, self._n_classes)[label_ids].astype(np.float64)


def row_space(rows: Floats) -> tuple[Floats, Floats]:
    """An exact rotation into the span of the rows, from their Gram matrix's eigenvectors.

    Args:
        rows: (n, d), more columns than rows.

    Returns:
        rotated (n, rank) and back (n, rank): `basis = rows.T @ back` is orthonormal, and
        `rows == rotated @ basis.T`. The basis itself is as large as the rows, and is not kept.
    """
    squares, vectors = np.linalg.eigh(rows @ rows.T)
    kept = squares > squares[-1] * len(rows) * np.finfo(np.float64).eps
    lengths = np.sqrt(squares[kept])
    vectors = vectors[:, kept]
    return vectors * lengths, vectors / lengths
