"""What is known of an image from one look at its bytes: hash, size, perceptual hash, measures.

The measures are CleanVision's (https://github.com/cleanlab/cleanvision, 0.3), taken from a copy
that is reduced by a whole factor to at least 128 pixels, because they must cost less than decoding.
Whether a measure is worth a flag is said in quality.py.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageStat

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

_VERSION = 1
_REDUCED_SIDE = 128
_BLUR_SIDE = 64
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
    small = image.reduce(max(1, max(image.size) // _REDUCED_SIDE))
    grey = small.convert("L")
    facts["phash"] = perceptual_hash(grey)
    facts["thumbnail"] = np.asarray(
        grey.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)
    ).ravel()
    facts["brightness_p5"], facts["brightness_p99"] = _brightness(small)
    facts["entropy_bits"] = grey.entropy() if _is_grey(small) else small.entropy()
    facts["edges_std"], facts["histogram_std"] = _sharpness(grey)
    return facts


def perceptual_hash(grey: Image.Image) -> int:
    """The 64-bit pHash: which low frequencies of the cosine transform are above their median.

    Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, in the form
    of the `imagehash` package. Coefficients are rounded, so that those which are zero but for the
    last bits of a float count as zero on every machine.
    """
    square = grey.resize((_HASH_SIDE, _HASH_SIDE), Image.Resampling.LANCZOS)
    low = _COSINES @ np.asarray(square, np.float64) @ _COSINES.T
    low = np.rint(low * 16)
    return int(np.packbits(low > np.median(low)).view(">u8")[0])


def _is_grey(image: Image.Image) -> bool:
    pixels = np.asarray(image)
    return bool((pixels[..., 1:] == pixels[..., :1]).all())


def _brightness(image: Image.Image) -> tuple[float, float]:
    """The 5th and 99th percentile of perceived brightness (http://alienryderflex.com/hsp.html)."""
    pixels = np.asarray(image, np.float32).reshape(-1, 3)
    squares = np.square(pixels) @ _LUMA
    last = len(squares) - 1
    low, high = round(0.05 * last), round(0.99 * last)
    squares.partition((low, high))
    return float(np.sqrt(squares[low])) / 255, float(np.sqrt(squares[high])) / 255


def _sharpness(grey: Image.Image) -> tuple[float, float]:
    """Standard deviations of the edge picture and of the histogram, at 64 pixels."""
    ratio = max(grey.size) / _BLUR_SIDE
    if ratio > 1:
        grey = grey.resize((max(1, int(grey.width / ratio)), max(1, int(grey.height / ratio))))
    edges = ImageStat.Stat(grey.filter(ImageFilter.FIND_EDGES))
    return float(np.sqrt(edges.var[0])), float(np.std(grey.histogram()))


def _cosines() -> NDArray[np.float64]:
    """The first rows of the type-II cosine transform, shape (8, 32)."""
    frequency = np.arange(_HASH_FREQUENCIES)[:, None]
    return np.cos(np.pi * frequency * (2 * np.arange(_HASH_SIDE) + 1) / (2 * _HASH_SIDE))


_COSINES = _cosines()
