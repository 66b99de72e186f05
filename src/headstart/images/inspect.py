"""What is known of an image from one look at its bytes: hash, size, perceptual hash, measures.

The measures are CleanVision's (https://github.com/cleanlab/cleanvision, 0.3), but taken from a
sample of the pixels, because all of this must cost far less than decoding. Whether a measure is
worth a flag is said in quality.py.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from headstart.files import sha256_of_json
from headstart.images.decode import DECODE_VERSION, decode_image

THUMBNAIL_SIDE = 16

FACTS = np.dtype(
    [
        ("sha256", "u1", 32),
        ("size_bytes", "<i8"),
        ("width", "<i4"),
        ("height", "<i4"),
        ("phash", "<u8"),
        ("thumbnail", "u1", THUMBNAIL_SIDE**2),
        ("brightness_p5", "<f4"),
        ("brightness_p99", "<f4"),
        ("entropy_bits", "<f4"),
        ("edges_std", "<f4"),
        ("histogram_std", "<f4"),
    ]
)
"""One image; brightness in [0, 1], a thumbnail of grey levels row by row."""

_VERSION = 2
_SAMPLED_SIDE, _SMALL_SIDE = 128, 64
_LUMA = np.array([0.241, 0.691, 0.068], np.float32)
_HASH_SIDE, _HASH_FREQUENCIES = 32, 8


def recipe(max_pixels: int) -> str:
    """A hash of everything but the bytes that facts and rejections depend on."""
    return sha256_of_json(
        {
            "decode": DECODE_VERSION,
            "inspect": _VERSION,
            "facts": repr(FACTS.descr),
            "max_pixels": max_pixels,
        }
    )


def inspect(data: bytes, sha256: bytes, *, max_pixels: int) -> NDArray[Any]:
    """Decode an image once and measure it; an array of FACTS, shape (1,).

    `sha256` is the hash of `data`, 32 bytes.

    Raises:
        RejectedImage: as `decode` does.
    """
    image = decode_image(data, max_pixels=max_pixels)
    facts = np.zeros(1, FACTS)
    facts["sha256"] = np.frombuffer(sha256, np.uint8)
    facts["size_bytes"] = len(data)
    facts["width"], facts["height"] = image.size
    sampled = _shrink(image, _SAMPLED_SIDE, Image.Resampling.NEAREST)
    grey = sampled.convert("L")
    colours = np.asarray(sampled)[::2, ::2].reshape(-1, 3)
    facts["brightness_p5"], facts["brightness_p99"] = _brightness(colours)
    facts["entropy_bits"] = (grey if _is_grey(colours) else sampled).entropy()
    small = _shrink(grey, _SMALL_SIDE, Image.Resampling.BOX)
    facts["phash"] = perceptual_hash(small)
    facts["thumbnail"] = np.asarray(
        small.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)
    ).ravel()
    facts["edges_std"] = _edges(small)
    facts["histogram_std"] = _std(np.array(small.histogram()))
    return facts


def _shrink(image: Image.Image, side_px: int, method: Image.Resampling) -> Image.Image:
    """The image with its longer side at most `side_px`."""
    scale = side_px / max(image.size)
    if scale >= 1:
        return image
    width, height = image.size
    return image.resize((max(1, round(width * scale)), max(1, round(height * scale))), method)


def perceptual_hash(grey: Image.Image) -> int:
    """The 64-bit pHash: which low frequencies of the cosine transform are above their median.

    Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, in the form
    of the `imagehash` package. Coefficients are rounded, so that those which are zero but for the
    last bits of a float count as zero on every machine.
    """
    square = grey.resize((_HASH_SIDE, _HASH_SIDE), Image.Resampling.LANCZOS)
    low = _COSINES @ np.asarray(square, np.float64) @ _COSINES.T
    low = np.rint(low.ravel() * 16)
    ranked = np.sort(low)
    median = (ranked[31] + ranked[32]) / 2
    return int(np.packbits(low > median).view(">u8")[0])


def _brightness(colours: NDArray[np.uint8]) -> tuple[float, float]:
    """The 5th and 99th percentile of perceived brightness (http://alienryderflex.com/hsp.html)."""
    squares = np.square(colours, dtype=np.float32) @ _LUMA
    last = len(squares) - 1
    low, high = round(0.05 * last), round(0.99 * last)
    squares.partition((low, high))
    return math.sqrt(squares[low]) / 255, math.sqrt(squares[high]) / 255


def _is_grey(colours: NDArray[np.uint8]) -> bool:
    # Compared as bytes: numpy's own comparison along so short an axis takes many times as long.
    red, green, blue = (colours[:, channel].tobytes() for channel in range(3))
    return red == green == blue


def _edges(grey: Image.Image) -> float:
    """Standard deviation of the edge picture, without the outermost pixels.

    There Pillow's filter leaves the picture as it is; in CleanVision these pixels count, and hide
    most of what blur changes.
    """
    edges = np.asarray(grey.filter(ImageFilter.FIND_EDGES))
    inner = edges[1:-1, 1:-1]
    return _std((inner if inner.size else edges).ravel())


def _std(values: NDArray[Any]) -> float:
    """Standard deviation; numpy's own takes longer than all the rest for so few values."""
    exact = values.astype(np.float64)
    mean = exact.mean()
    return math.sqrt(max(0.0, float(exact @ exact) / len(exact) - float(mean * mean)))


def _cosines() -> NDArray[np.float64]:
    """The first rows of the type-II cosine transform, shape (8, 32)."""
    frequency = np.arange(_HASH_FREQUENCIES)[:, None]
    return np.cos(np.pi * frequency * (2 * np.arange(_HASH_SIDE) + 1) / (2 * _HASH_SIDE))


_COSINES = _cosines()
