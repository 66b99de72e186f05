"""Pixels through a whole model in Keras, where it is trained and exported."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import keras

# Images that are read together.
BATCH_SIZE = 8


def predict_batch(model: "keras.Model", pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return what `model` gives for images, float32, shape (n, …): each by its own forward pass.

    So a row does not depend on what shares its batch, on any processor. A constant batch size is
    not enough: without AVX-512, kernels differ by the place of a row in the batch too.
    """
    rows = [model.predict_on_batch(pixels[i : i + 1]) for i in range(len(pixels))]
    return np.concatenate(rows).astype(np.float32, copy=False)
