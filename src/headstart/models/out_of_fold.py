"""Logits of images that a head was not trained on, though heads were trained on all of them.

Heads on all folds but one answer for that one. Knows features and heads, not what the logits are
for.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headstart.errors import TrainingError
from headstart.features.store import FeatureBatch
from headstart.heads.config import HeadConfig
from headstart.heads.fit import check_finite
from headstart.heads.fitted import FittedHead
from headstart.heads.folds import assign_folds
from headstart.heads.lanes import shape_for
from headstart.heads.probe import ProbeRows
from headstart.heads.stack import HeadStack, RowGroup, StackData


def out_of_fold_logits(
    config: HeadConfig,
    batch: FeatureBatch,
    *,
    n_classes: int,
    seeds: Sequence[int],
    folds: int,
    epochs: int,
    batch_size: int,
) -> NDArray[np.float64]:
    """Mean logits of the heads that did not see an image: shape (n_images, n_classes).

    Args:
        folds: grouped and stratified; drawn from the first seed.
        seeds: one head a fold and seed; their logits are averaged.
        epochs: of every head.

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
    else:
        fitted = _networks(config, data, groups, epochs=epochs, batch_size=batch_size)
    logits = np.zeros((len(batch), n_classes))
    for group, head in zip(groups, fitted, strict=True):
        check_finite(head, "trained on folds")
        logits[group.validation] += head.logits(batch.features[group.validation, 0]) / len(seeds)
    if not np.isfinite(logits).all():
        raise TrainingError(
            "the logits of images that a head was not trained on must be finite, but some are not: "
            "lower learning_rate"
        )
    return logits


def _networks(
    config: HeadConfig,
    data: StackData,
    groups: Sequence[RowGroup],
    *,
    epochs: int,
    batch_size: int,
) -> list[FittedHead]:
    shape = shape_for(
        [config],
        groups=len(groups),
        feature_dim=data.features.shape[2],
        n_classes=data.n_classes,
        batch_size=batch_size,
    )
    stack = HeadStack(data, groups, shape)
    stack.add(0, config)
    for _ in range(epochs):
        stack.run_epoch()
    return [stack.fitted(0, index) for index in range(len(groups))]
