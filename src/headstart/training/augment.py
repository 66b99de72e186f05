"""Random views of training images: one affine transform and one change of contrast an image.

What is drawn depends on the seed and the number of the epoch alone, never on batches, devices or
on what was drawn before. Knows nothing of training.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.params.train import FineTuneParams


@dataclass(frozen=True)
class Views:
    """How each image of an epoch is changed.

    Attributes:
        transforms: float32, shape (n_images, 8); from places of the view to places of the image,
            as `keras.ops.image.affine_transform` takes them.
        contrast: float32, shape (n_images,); factor of the distance from the image's mean.
    """

    transforms: NDArray[np.float32]
    contrast: NDArray[np.float32]


def draw_views(params: FineTuneParams, n_images: int, size: int, generator: Any) -> Views:
    """Draw flips, rotations, zooms, shifts and contrasts, each uniform in its range."""
    flip = np.where((generator.random(n_images) < 0.5) & params.flip, -1.0, 1.0)
    limit = np.deg2rad(params.rotation_degrees)
    angle = generator.uniform(-limit, limit, n_images)
    zoom = generator.uniform(1 - params.zoom, 1 + params.zoom, n_images)
    shift = generator.uniform(-params.shift, params.shift, (n_images, 2)) * size
    contrast = generator.uniform(1 - params.contrast, 1 + params.contrast, n_images)
    centre = (size - 1) / 2
    a, b = flip * np.cos(angle) / zoom, -np.sin(angle) / zoom
    c, d = flip * np.sin(angle) / zoom, np.cos(angle) / zoom
    # About the centre of the image, not its corner.
    x0 = centre - a * centre - b * centre + shift[:, 0]
    y0 = centre - c * centre - d * centre + shift[:, 1]
    zero = np.zeros(n_images)
    transforms = np.stack([a, b, x0, c, d, y0, zero, zero], axis=1)
    return Views(transforms.astype(np.float32), contrast.astype(np.float32))


def change(pixels: Any, transforms: Any, contrast: Any) -> Any:
    """The drawn views of a batch, uint8 (n, size, size, 3) as tensors, as images are.

    Args:
        pixels: uint8 (n, size, size, 3).
        transforms, contrast: those of `Views` for these images.
    """
    from keras import ops

    values = ops.cast(pixels, "float32")
    values = ops.image.affine_transform(
        values,
        transforms,
        interpolation="bilinear",
        fill_mode="nearest",
        data_format="channels_last",
    )
    mean = ops.mean(values, axis=(1, 2, 3), keepdims=True)
    factor = ops.reshape(contrast, (-1, 1, 1, 1))
    changed = ops.clip((values - mean) * factor + mean, 0.0, 255.0)
    return ops.cast(ops.round(changed), "uint8")
