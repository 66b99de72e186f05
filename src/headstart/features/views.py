"""Views of an image: view 0 is the plain input pixels, the others are seeded augmentations of it.

Which one is drawn depends on the image's sha256, the seed and the view's number alone. Knows
nothing of batches.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from headstart.cache.shards import PLAIN_VIEW
from headstart.images.decode import resize
from headstart.params.image import ImageParams

# Raised when the augmented views that this code draws change.
AUGMENTATION_VERSION = 1

_LEAST_AREA = 0.6
_COLOUR_RANGE = 0.25


@dataclass(frozen=True)
class ViewPlan:
    """Which views an image has: the plain one, and `n_views - 1` augmented ones from a seed."""

    n_views: int
    seed: int

    def key(self, view: int) -> bytes:
        """Eight bytes that tell one view from all others, in the cache's keys."""
        if view == 0:
            return PLAIN_VIEW
        name = f"augmented {AUGMENTATION_VERSION} {self.seed} {view}"
        return hashlib.sha256(name.encode()).digest()[:8]

    def augmented(
        self, pixels: NDArray[np.uint8], sha256: str, view: int, image: ImageParams
    ) -> NDArray[np.uint8]:
        """An augmented view of a whole decoded image, uint8, shape (size, size, 3)."""
        digest = hashlib.sha256(self.key(view) + bytes.fromhex(sha256)).digest()
        generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))
        return resize(_augmented(pixels, generator), image)


def _augmented(pixels: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.uint8]:
    """A random crop of at least 0.6 of the area, perhaps mirrored, colours shifted a little."""
    area, left, top, flip, *colours = generator.random(7).tolist()
    height, width = pixels.shape[:2]
    side = np.sqrt(_LEAST_AREA + (1 - _LEAST_AREA) * area)
    crop_height, crop_width = max(1, round(height * side)), max(1, round(width * side))
    y, x = round(top * (height - crop_height)), round(left * (width - crop_width))
    cropped = pixels[y : y + crop_height, x : x + crop_width]
    if flip < 0.5:
        cropped = cropped[:, ::-1]
    picture = Image.fromarray(np.ascontiguousarray(cropped))
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for enhancer, colour in zip(enhancers, colours, strict=True):
        picture = enhancer(picture).enhance(1 + _COLOUR_RANGE * (2 * colour - 1))
    return np.asarray(picture)
