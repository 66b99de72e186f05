"""A small real backbone, and heads of every kind upon it."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from headstart.heads.config import HeadConfig
from headstart.heads.fitted import DenseWeights, FittedHead

FEATURE_DIM = 12
SIZE = 16


def make_backbone(seed: int = 0) -> Any:
    """Two convolutions with batch normalisation: uint8 (n, 16, 16, 3) to float32 (n, 12)."""
    import keras

    keras.utils.set_random_seed(seed)
    layers = keras.layers
    image = keras.Input((SIZE, SIZE, 3), dtype="uint8", name="image")
    values = layers.Rescaling(1 / 128, -1.0, name="preprocess_rescale")(image)
    for block in (1, 2):
        values = layers.Conv2D(FEATURE_DIM, 3, strides=2, name=f"block{block}_conv")(values)
        values = layers.BatchNormalization(name=f"block{block}_bn")(values)
        values = layers.ReLU(name=f"block{block}_relu")(values)
    features = layers.GlobalAveragePooling2D(name="features")(values)
    model = keras.Model(image, features, name="small")
    model.trainable = False
    return model


def make_head(seed: int = 0, n_classes: int = 3, **fields: Any) -> FittedHead:
    """A head with random weights, as if it had been trained."""
    config = HeadConfig(**{"width": 8, **fields})
    generator = np.random.default_rng(seed)
    widths = [FEATURE_DIM, *[config.width] * config.hidden_layers, n_classes]
    layers = tuple(
        DenseWeights(
            generator.normal(size=(n_in, n_out)).astype(np.float32),
            generator.normal(size=n_out).astype(np.float32),
        )
        for n_in, n_out in pairwise(widths)
    )
    standardised = config.normalisation == "standardise"
    return FittedHead(
        config=config,
        n_classes=n_classes,
        layers=layers,
        mean=np.linspace(-1, 1, FEATURE_DIM, dtype=np.float32) if standardised else None,
        variance=np.linspace(0.1, 2, FEATURE_DIM, dtype=np.float32) if standardised else None,
    )


@pytest.fixture(scope="session")
def backbone() -> Any:
    """The small backbone."""
    return make_backbone()


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    """uint8, shape (20, 16, 16, 3)."""
    return np.random.default_rng(0).integers(0, 256, (20, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def head() -> Callable[..., FittedHead]:
    """Makes heads."""
    return make_head
