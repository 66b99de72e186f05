"""Images through a whole model in Keras, in bounded memory: its bare outputs.

Knows image files and a Keras model; not splits, labels or features, nor folders: what trains,
evaluates and serves depends on this file.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headstart.common.prefetch import prefetched
from headstart.images.decode import MAX_PIXELS, decode_input
from headstart.params.image import ImageParams

if TYPE_CHECKING:
    import keras

# Images that are decoded together, or ahead.
BATCH_SIZE = 8


def compute_outputs(
    model: "keras.Model", paths: Sequence[Path], image: ImageParams, *, max_pixels: int = MAX_PIXELS
) -> NDArray[np.float32]:
    """Return what `model` gives for image files: float32, shape (n_files, n_outputs)."""
    with ThreadPoolExecutor() as pool:
        decoded = prefetched(
            lambda path: decode_input(path.read_bytes(), image, max_pixels=max_pixels),
            paths,
            pool,
            2 * BATCH_SIZE,
        )
        return np.concatenate([predict_batch(model, pixels[np.newaxis]) for pixels in decoded])


def predict_batch(model: "keras.Model", pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return what `model` gives for images, float32, shape (n, …): each by its own forward pass.

    So a row does not depend on what shares its batch, on any processor. A constant batch size is
    not enough: without AVX-512, kernels differ by the place of a row in the batch too.
    """
    rows = [model.predict_on_batch(pixels[i : i + 1]) for i in range(len(pixels))]
    return np.concatenate(rows).astype(np.float32, copy=False)
