"""Logits of images that a head was not trained on, though heads were trained on all of them.

Heads on all folds but one answer for that one. Knows features and heads, not what the logits are
for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headstart.common.errors import TrainingError
from headstart.features.feature_store import FeatureBatch
from headstart.heads.config import HeadConfig
from headstart.heads.curve import curve_metrics, epoch_scores
from headstart.heads.fit import check_finite
from headstart.heads.folds import assign_folds
from headstart.heads.lanes import groups_that_fit, shape_for
from headstart.heads.probe import ProbeRows
from headstart.heads.stack import HeadStack, RowGroup, StackData


@dataclass(frozen=True)
class OutOfFold:
    """What heads say of the images that they did not see.

    Attributes:
        logits: float64, shape (n_images, n_classes); the mean over seeds.
        curve: by metric, its mean over folds and seeds after each epoch.
    """

    logits: NDArray[np.float64]
    curve: dict[str, list[float]]


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
        folds: grouped and stratified; drawn from the first seed.
        seeds: one head a fold and seed; their logits are averaged.
        epochs: of every head.
        metric: one of those that the curve has.

    Raises:
        TrainingError: weights are no longer numbers.
    """
    fold = assign_folds(
        batch.label_ids, batch.groups, folds=folds, seed=seeds[0], parameter="train.folds"
    )
    groups = [
        RowGroup((fold != held_out).astype(np.float32), np.flatnonzero(fold == held_out), seed)
        for held_out in range(folds)
        for seed in seeds
    ]
    data = StackData(batch.features, batch.label_ids, n_classes)
    if config.kind == "linear_probe":
        heads = [ProbeRows(data.features, data.label_ids, g.row_weights, n_classes) for g in groups]
        fitted = [rows.fit(config) for rows in heads]
        answers = [head.logits(batch.features[g.validation, 0])[None]
                   for head, g in zip(fitted, groups, strict=True)]  # fmt: skip
        of_groups = [[_scored(metric, data, groups, answers)]]
    else:
        shape = shape_for(
            [config],
            groups=len(groups),
            feature_dim=data.features.shape[2],
            n_classes=n_classes,
            batch_size=batch_size,
        )
        fitted, of_groups = [], []
        for part, some in groups_that_fit(shape, groups):
            stack = HeadStack(data, some, part)
            stack.add(0, config)
            of_groups.append([])
            for _ in range(epochs):
                stack.run_epoch()
                logits_now = stack.validation_logits()[1]
                of_groups[-1].append(_scored(metric, data, some, logits_now))
            fitted += [stack.fitted(0, index) for index in range(len(some))]
    curve = {
        name: [
            float(np.concatenate([epoch[name][:, 0] for epoch in at_once]).mean())
            for at_once in zip(*of_groups, strict=True)
        ]
        for name in curve_metrics(metric)
    }
    logits = np.zeros((len(batch), n_classes))
    for group, head in zip(groups, fitted, strict=True):
        check_finite(head, "trained on folds")
        logits[group.validation] += head.logits(batch.features[group.validation, 0]) / len(seeds)
    if not np.isfinite(logits).all():
        raise TrainingError(
            "the logits of images that a head was not trained on must be finite, but some are not: "
            "lower learning_rate"
        )
    return OutOfFold(logits, curve)


def _scored(
    metric: str,
    data: StackData,
    groups: Sequence[RowGroup],
    logits: Sequence[NDArray[np.float32]],
) -> dict[str, NDArray[np.float64]]:
    """(n_groups, 1) by metric."""
    labels = [data.label_ids[group.validation] for group in groups]
    return epoch_scores(curve_metrics(metric), labels, logits)
