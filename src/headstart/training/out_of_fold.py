"""What heads of one config say of development images that they were not trained on.

Heads on all folds but one answer for that one. Knows features and heads, not what the answers are
for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.common.errors import TrainingError
from headstart.features.feature_store import FeatureBatch
from headstart.heads.config import HeadConfig
from headstart.heads.curve import curve_metrics, epoch_scores
from headstart.heads.fit import check_finite, linear_heads
from headstart.heads.fitted import FittedHead
from headstart.heads.folds import RowGroup, assign_folds, count_folds


@dataclass(frozen=True)
class OutOfFold:
    """What heads say of the images that they did not see.

    Attributes:
        logits: float64, shape (n_images, n_classes); the mean over seeds, 0 where `fold` is -1.
        fold: int64, shape (n_images,); -1 for images of a class of one group, which only train.
        curve: by metric, its mean over folds and seeds after each epoch.
        temperature: what scores of ridge were divided by.
    """

    logits: NDArray[np.float64]
    fold: NDArray[np.int64]
    curve: dict[str, list[float]]
    temperature: float = 1.0


def out_of_fold(
    config: HeadConfig,
    batch: FeatureBatch,
    *,
    n_classes: int,
    seeds: Sequence[int],
    folds: int,
    epochs: int,
    batch_size: int,
    metric: str,
) -> OutOfFold:
    """Train heads on all folds but one, for each fold, and ask them about that one.

    Args:
        folds: at most; grouped and stratified, drawn from the first seed.
        seeds: networks are trained from each, one a fold; their logits are averaged.
        epochs: of every network.
        metric: one of those that the curve has.

    Raises:
        TrainingError: weights are no longer numbers.
    """
    n_folds = count_folds(batch.label_ids, batch.groups, folds)
    fold = assign_folds(batch.label_ids, batch.groups, folds=n_folds, seed=seeds[0])
    held_out = [rows for k in range(n_folds) if len(rows := np.flatnonzero(fold == k))]
    logits = np.zeros((len(batch), n_classes))
    if config.kind != "network":
        groups = [_without(rows, len(batch), seeds[0]) for rows in held_out]
        solver, whole = linear_heads(config, batch.features, batch.label_ids, n_classes)
        (answers,) = solver.out_of_fold(whole, groups)
        plain = [one[:: batch.features.shape[1]] for one in answers.logits]
        for rows, one in zip(held_out, plain, strict=True):
            logits[rows] = one
        scored = [_scored(metric, batch, groups, [one[None] for one in plain])]
        return OutOfFold(logits, fold, _mean_curve([scored], metric), answers.temperature)
    groups = [_without(rows, len(batch), seed) for rows in held_out for seed in seeds]
    fitted, of_groups = _trained(config, batch, groups, n_classes, epochs, batch_size, metric)
    for group, head in zip(groups, fitted, strict=True):
        check_finite(head, "trained on folds")
        logits[group.validation] += head.logits(batch.features[group.validation, 0]) / len(seeds)
    if not np.isfinite(logits).all():
        raise TrainingError(
            "the logits of images that a head was not trained on must be finite, but some are not: "
            "lower learning_rate"
        )
    return OutOfFold(logits, fold, _mean_curve(of_groups, metric))


def _without(rows: NDArray[np.int64], n: int, seed: int) -> RowGroup:
    weights = np.ones(n, np.float32)
    weights[rows] = 0
    return RowGroup(weights, rows, seed)


def _trained(
    config: HeadConfig,
    batch: FeatureBatch,
    groups: Sequence[RowGroup],
    n_classes: int,
    epochs: int,
    batch_size: int,
    metric: str,
) -> tuple[list[FittedHead], list[Any]]:
    """A network for each group, and the metrics of each epoch, in as many parts as memory needs."""
    from headstart.heads.lanes import groups_that_fit, shape_for
    from headstart.heads.stack import HeadStack, StackData

    data = StackData(batch.features, batch.label_ids, n_classes)
    shape = shape_for(
        [config],
        groups=len(groups),
        feature_dim=batch.features.shape[2],
        n_classes=n_classes,
        batch_size=batch_size,
    )
    fitted: list[FittedHead] = []
    of_groups: list[Any] = []
    for part, some in groups_that_fit(shape, groups):
        stack = HeadStack(data, some, part)
        stack.add(0, config)
        of_groups.append([])
        for _ in range(epochs):
            stack.run_epoch()
            of_groups[-1].append(_scored(metric, batch, some, stack.validation_logits()[1]))
        fitted += [stack.fitted(0, index) for index in range(len(some))]
    return fitted, of_groups


def _scored(
    metric: str,
    batch: FeatureBatch,
    groups: Sequence[RowGroup],
    logits: Sequence[NDArray[np.float32]],
) -> dict[str, NDArray[np.float64]]:
    """(n_groups, 1) by metric."""
    labels = [batch.label_ids[group.validation] for group in groups]
    return epoch_scores(curve_metrics(metric), labels, logits)


def _mean_curve(of_groups: Sequence[Any], metric: str) -> dict[str, list[float]]:
    """By metric, the mean over all groups after each epoch."""
    return {
        name: [
            float(np.concatenate([epoch[name][:, 0] for epoch in at_once]).mean())
            for at_once in zip(*of_groups, strict=True)
        ]
        for name in curve_metrics(metric)
    }
