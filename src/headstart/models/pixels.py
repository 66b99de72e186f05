"""Image files through a whole model, in bounded memory.

Knows files and a Keras model; not splits, labels or features.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headstart.images.decode import MAX_PIXELS, decode_input
from headstart.params.image import ImageParams

if TYPE_CHECKING:
    import keras

# Images that are decoded together.
BATCH_SIZE = 8


def predict_files(
    model: "keras.Model",
    paths: Sequence[Path],
    image: ImageParams,
    *,
    batch_size: int = BATCH_SIZE,
    max_pixels: int = MAX_PIXELS,
) -> NDArray[np.float32]:
    """Outputs of `model` for image files: float32, shape (n_files, n_outputs)."""
    batches = decoded_batches(paths, image, batch_size=batch_size, max_pixels=max_pixels)
    return np.concatenate([predict_batch(model, pixels) for pixels in batches])


def predict_batch(model: "keras.Model", pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Outputs of `model` for images, float32, shape (n, …): a forward pass for each of them.

    So a row does not depend on what shares its batch, on any processor. A constant batch size is
    not enough: without AVX-512, kernels differ by the place of a row in the batch too.
    """
    rows = [model.predict_on_batch(pixels[i : i + 1]) for i in range(len(pixels))]
    return np.concatenate(rows).astype(np.float32, copy=False)


def decoded_batches(
    paths: Sequence[Path],
    image: ImageParams,
    *,
    batch_size: int = BATCH_SIZE,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[NDArray[np.uint8]]:
    """Input pixels, uint8 (n, size, size, 3); one batch is decoded ahead."""
    with ThreadPoolExecutor() as pool:

        def start(first: int) -> list[Future[NDArray[np.uint8]]]:
            chosen = paths[first : first + batch_size]
            return [pool.submit(_decode, path, image, max_pixels) for path in chosen]

        ahead = start(0)
        for first in range(0, len(paths), batch_size):
            current, ahead = ahead, start(first + batch_size)
            yield np.stack([future.result() for future in current])


def _decode(path: Path, image: ImageParams, max_pixels: int) -> NDArray[np.uint8]:
    return decode_input(path.read_bytes(), image, max_pixels=max_pixels)
