"""The small encoder, heads and workspace of the tests of models, and drawn predictions."""

import numpy as np
from numpy.typing import NDArray

from headstart.heads.metrics import softmax
from tests.models.conftest import encoder, head, pixels, workspace  # noqa: F401

CLASSES = ("a", "b", "c", "d")


def draw_predictions(n: int = 300, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels of four classes, and the probabilities of a model that is often right."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 4, n)
    logits = generator.normal(size=(n, 4)) + 2.0 * np.eye(4)[labels]
    return labels, softmax(logits)
