"""What is known of an image from one look at its bytes: hash, size, thumbnail, measures.

The measures are CleanVision's (https://github.com/cleanlab/cleanvision, 0.3), but taken from a
sample of the pixels, because all of this must cost far less than decoding. Whether a measure is
worth a flag is said in quality.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headstart.common.files import sha256_of_json
from headstart.images.decode import DECODE_VERSION, decode_image

THUMBNAIL_SIDE, COLOUR_SIDE = 16, 4
NO_COLOUR = 128

STATISTICS = np.dtype(
    [
        ("sha256", "u1", 32),
        ("size_bytes", "<i8"),
        ("width", "<i4"),
        ("height", "<i4"),
        ("thumbnail", "u1", THUMBNAIL_SIDE**2),
        ("colours", "u1", 2 * COLOUR_SIDE**2),
        ("brightness_p5", "<f4"),
        ("brightness_p99", "<f4"),
        ("entropy_bits", "<f4"),
        ("edges_std", "<f4"),
        ("histogram_std", "<f4"),
    ]
)
"""One image; brightness in [0, 1], a thumbnail of grey levels row by row, and a smaller one of
colours: all of Cb, then all of Cr, each NO_COLOUR where there is none."""

_VERSION = 4
_SAMPLED_SIDE, _SMALL_SIDE, _TINY_SIDE = 192, 64, 48
_LUMA = np.array([0.241, 0.691, 0.068], np.float32)
_LEVELS = 256


def recipe(max_pixels: int) -> str:
    """A hash of everything but the bytes that statistics and rejections depend on."""
    return sha256_of_json(
        {
            "decode": DECODE_VERSION,
            "inspect": _VERSION,
            "facts": repr(STATISTICS.descr),
            "max_pixels": max_pixels,
        }
    )


@dataclass(frozen=True, slots=True)
class Sample:
    """What is kept of a decoded picture until it is measured: every so many pixels of it."""

    sha256: bytes
    n_bytes: int
    size: tuple[int, int]
    pixels: Image.Image


def inspect(data: bytes, sha256: bytes, *, max_pixels: int) -> NDArray[Any]:
    """Decode an image once and measure it; an array of STATISTICS, shape (1,).

    `sha256` is the hash of `data`, 32 bytes.

    Raises:
        RejectedImage: as `decode` does.
    """
    return measure([sample(data, sha256, max_pixels=max_pixels)])


def sample(data: bytes, sha256: bytes, *, max_pixels: int) -> Sample:
    """The first half of `inspect`: decode, and keep what `measure` needs; raises as it does."""
    image = decode_image(data, max_pixels=max_pixels)
    pixels = _shrink(image, _SAMPLED_SIDE, Image.Resampling.NEAREST)
    return Sample(sha256, len(data), image.size, pixels)


def measure(samples: Sequence[Sample]) -> NDArray[Any]:
    """The second half, for at least one picture: an array of STATISTICS, shape (len(samples),).

    Meant for many pictures at once: between one decoding and the next all of this would have been
    driven from the processor's caches. A picture's statistics do not depend on the others.
    """
    statistics = np.zeros(len(samples), STATISTICS)
    statistics["sha256"] = np.frombuffer(b"".join(s.sha256 for s in samples), np.uint8).reshape(
        -1, 32
    )
    statistics["size_bytes"] = [s.n_bytes for s in samples]
    statistics["width"], statistics["height"] = zip(*(s.size for s in samples), strict=True)
    greys = [s.pixels.convert("L") for s in samples]
    smalls = [_small(grey) for grey in greys]
    tinies = [_shrink(s.pixels, _TINY_SIDE, Image.Resampling.NEAREST) for s in samples]
    colours = [np.asarray(tiny).reshape(-1, 3) for tiny in tinies]
    statistics["brightness_p5"], statistics["brightness_p99"] = _brightness(colours)
    statistics["entropy_bits"] = [
        (small if _is_grey(own) else tiny).entropy()
        for tiny, small, own in zip(tinies, smalls, colours, strict=True)
    ]
    statistics["thumbnail"], statistics["colours"] = _thumbnails([s.pixels for s in samples])
    arrays = [np.asarray(small) for small in smalls]
    statistics["edges_std"] = _stds([_edges(array) for array in arrays])
    counts = [np.bincount(array.ravel(), minlength=_LEVELS) for array in arrays]
    statistics["histogram_std"] = np.array(counts).std(axis=1)
    return statistics


def _shrink(image: Image.Image, side_px: int, method: Image.Resampling) -> Image.Image:
    """The image with its longer side at most `side_px`."""
    scale = side_px / max(image.size)
    if scale >= 1:
        return image
    width, height = image.size
    return image.resize((max(1, round(width * scale)), max(1, round(height * scale))), method)


def _small(grey: Image.Image) -> Image.Image:
    if max(grey.size) == _SAMPLED_SIDE:
        # The same means as of a box filter, and cheaper.
        return grey.reduce(_SAMPLED_SIDE // _SMALL_SIDE)
    return _shrink(grey, _SMALL_SIDE, Image.Resampling.BOX)


def _thumbnails(
    pictures: Sequence[Image.Image],
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Grey levels, shape (n, 256), and colours, shape (n, 32), the means of 4 × 4 pixels each.

    Turned or mirrored pictures have turned or mirrored ones: a box filter would not do, which gives
    a pixel on the border of two to the one before.
    """
    side = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    small = [
        picture.resize(side, Image.Resampling.HAMMING).convert("YCbCr") for picture in pictures
    ]
    pixels = np.stack([np.asarray(picture) for picture in small]).transpose(0, 3, 1, 2)
    n = THUMBNAIL_SIDE // COLOUR_SIDE
    sums = pixels[:, 1:].reshape(-1, 2, COLOUR_SIDE, n, COLOUR_SIDE, n).sum((3, 5), np.uint16)
    colours = np.asarray((sums + n * n // 2) // (n * n), np.uint8)
    return pixels[:, 0].reshape(-1, THUMBNAIL_SIDE**2), colours.reshape(-1, 2 * COLOUR_SIDE**2)


def _brightness(
    colours: Sequence[NDArray[np.uint8]],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The 5th and 99th percentile of perceived brightness (http://alienryderflex.com/hsp.html)."""
    squares = np.square(np.concatenate(colours), dtype=np.float32)
    # Not a product of matrices, whose last bits depend on how many rows there are.
    levels = squares[:, 0] * _LUMA[0] + squares[:, 1] * _LUMA[1] + squares[:, 2] * _LUMA[2]
    found = np.empty((len(colours), 2), np.float32)
    for row, own in enumerate(np.split(levels, _ends(colours)[:-1])):
        last = len(own) - 1
        ranks = (round(0.05 * last), round(0.99 * last))
        found[row] = np.partition(own, ranks)[list(ranks)]
    low, high = (np.sqrt(found) / 255).T
    return low, high


def _is_grey(colours: NDArray[np.uint8]) -> bool:
    # Compared as bytes: numpy's own comparison along so short an axis takes many times as long.
    red, green, blue = (colours[:, channel].tobytes() for channel in range(3))
    return red == green == blue


def _edges(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture of edges as a vector, without the outermost pixels.

    As Pillow's FIND_EDGES, which leaves the outermost pixels as they are; in CleanVision they
    count, and hide most of what blur changes.
    """
    if min(grey.shape) < 3:
        return grey.ravel()
    wide = grey.astype(np.int16)
    rows = wide[:-2] + wide[1:-1] + wide[2:]
    around = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    return np.asarray(np.clip(9 * wide[1:-1, 1:-1] - around, 0, 255), np.uint8).ravel()


def _stds(vectors: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
    """Standard deviation of each; sums of whole numbers, so exact up to the last step."""
    ends = _ends(vectors)
    starts = np.concatenate(([0], ends[:-1]))
    values = np.concatenate(vectors).astype(np.int64)
    counts = np.diff(ends, prepend=0)
    mean = np.add.reduceat(values, starts) / counts
    mean_square = np.add.reduceat(values * values, starts) / counts
    return np.asarray(np.sqrt(np.maximum(0.0, mean_square - mean * mean)))


def _ends(vectors: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    return np.cumsum([len(vector) for vector in vectors])
