"""A features.h5 of made-up features, for tests that need one without an encoder."""

from pathlib import Path

import numpy as np

from headstart.common.cost import Cost
from headstart.features.feature_store import FeatureRows, write_features


def write_made_features(
    path: Path,
    *,
    n: int = 160,
    feature_dim: int = 24,
    n_classes: int = 4,
    n_views: int = 1,
    seed: int = 0,
    scale: float = 1.0,
    fingerprint: str = "f" * 64,
    blocks: dict[str, slice] | None = None,
    validation_given: bool = False,
    costs: dict[str, Cost] | None = None,
) -> None:
    """Write a store whose classes overlap a little; two rows in three are for training."""
    chance = np.random.default_rng(seed)
    label_ids = chance.permutation(np.arange(n) % n_classes).astype(np.int64)
    centres = chance.standard_normal((n_classes, feature_dim)) * 0.7
    features = centres[label_ids][:, None] + chance.standard_normal((n, n_views, feature_dim))
    names = [f"{chance.bytes(32).hex()}" for _ in range(n)]
    splits = [("train", "train", "train", "validation", "train", "test")[i % 6] for i in range(n)]
    paths = [f"class-{label}/{row}.png" for row, label in enumerate(label_ids)]
    write_features(
        path,
        rows=FeatureRows(label_ids, names, paths, splits, names),
        parts=[(features * scale).astype(np.float32)],
        n_views=n_views,
        encoder="made-up",
        blocks=blocks or {"last": slice(0, feature_dim)},
        classes=[f"class-{label}" for label in range(n_classes)],
        recipe={"backbone": "made-up"},
        fingerprint=fingerprint,
        validation_given=validation_given,
        costs=costs or {},
    )
