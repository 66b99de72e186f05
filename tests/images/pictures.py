"""Pictures that tests make for themselves, and the bytes of files that hold them."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A smooth random RGB picture: each seed gives another."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def quadrants() -> NDArray[np.uint8]:
    """A 32 × 48 picture whose corners tell how it is turned: red, green / blue, white."""
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:16, :24] = (255, 0, 0)
    pixels[:16, 24:] = (0, 255, 0)
    pixels[16:, :24] = (0, 0, 255)
    pixels[16:, 24:] = (255, 255, 255)
    return pixels


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_picture(path: Path, seed: int, size: tuple[int, int] = (64, 48), **options: Any) -> None:
    """Write a picture in the format of the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, size).save(path, **options)


def write_classes(folder: Path, images_per_class: int, classes: Iterable[str] = "ab") -> None:
    """Class folders of different small pictures."""
    for label_id, label in enumerate(classes):
        for i in range(images_per_class):
            write_picture(folder / label / f"{i:03d}.png", 1000 * label_id + i, (24, 18))
