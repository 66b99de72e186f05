"""Statistics of an image taken when it is decoded, and the issues that they show.

Both are CleanVision's (https://github.com/cleanlab/cleanvision, 0.3,
issue_managers/image_property.py), with its definitions and thresholds, but statistics are taken
from a sample of the pixels, because all of this must cost far less than decoding. Nothing is left
out for an issue.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headstart.common.files import sha256_of_json
from headstart.images.decode import DECODE_VERSION, LEAST_PX, decode_image, decode_once
from headstart.params.image import ImageParams

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
_DARK, _LIGHT = 0.32, 0.05
_LOW_INFORMATION, _ENTROPY_FACTOR = 0.3, 0.1
_BLUR, _BLUR_FACTOR, _FLAT_HISTOGRAM = 0.29, 0.01, 0.18
_ASPECT_RATIO = 0.35
_QUARTILE_RANGES = 3.0


def recipe(max_pixels: int) -> str:
    """Return a hash of everything but the bytes that statistics and rejections depend on."""
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
    """What is kept of a decoded image for its statistics: every so many pixels of it."""

    sha256: bytes
    n_bytes: int
    size: tuple[int, int]
    pixels: Image.Image


def inspect(data: bytes, sha256: bytes, *, max_pixels: int) -> NDArray[Any]:
    """Decode an image once and return its STATISTICS, shape (1,).

    `sha256` is the hash of `data`, 32 bytes.

    Raises:
        RejectedImage: as `decode` does.
    """
    return statistics_of([sample(data, sha256, max_pixels=max_pixels)])


def sample(data: bytes, sha256: bytes, *, max_pixels: int) -> Sample:
    """Decode an image and keep what `statistics_of` needs; raises as `inspect` does."""
    image, size = decode_image(data, max_pixels=max_pixels, least_px=LEAST_PX)
    return _sample(sha256, len(data), image, size)


def sample_and_input(
    data: bytes, sha256: bytes, image: ImageParams, *, max_pixels: int
) -> tuple[Sample, NDArray[np.uint8]]:
    """As `sample`, and the input pixels, shape (size, size, 3), of the same decoding."""
    picture, size, pixels = decode_once(data, image, max_pixels=max_pixels)
    return _sample(sha256, len(data), picture, size), pixels


def _sample(sha256: bytes, n_bytes: int, image: Image.Image, size: tuple[int, int]) -> Sample:
    return Sample(sha256, n_bytes, size, _shrink(image, _SAMPLED_SIDE, Image.Resampling.NEAREST))


def statistics_of(samples: Sequence[Sample]) -> NDArray[Any]:
    """Return the STATISTICS of at least one image, shape (len(samples),).

    Meant for many images at once: between one decoding and the next all of this would have been
    driven from the processor's caches. An image's statistics do not depend on the others.
    """
    statistics = np.zeros(len(samples), STATISTICS)
    hashes = np.frombuffer(b"".join(s.sha256 for s in samples), np.uint8)
    statistics["sha256"] = hashes.reshape(-1, 32)
    statistics["size_bytes"] = [s.n_bytes for s in samples]
    statistics["width"], statistics["height"] = zip(*(s.size for s in samples), strict=True)
    statistics["thumbnail"], statistics["colours"] = _thumbnails([s.pixels for s in samples])

    # The 5th and 99th percentile of perceived brightness (http://alienryderflex.com/hsp.html).
    tinies = [_shrink(s.pixels, _TINY_SIDE, Image.Resampling.NEAREST) for s in samples]
    colours = [np.asarray(tiny).reshape(-1, 3) for tiny in tinies]
    squares = np.square(np.concatenate(colours), dtype=np.float32)
    # Not a product of matrices, whose last bits depend on how many rows there are.
    levels = squares[:, 0] * _LUMA[0] + squares[:, 1] * _LUMA[1] + squares[:, 2] * _LUMA[2]
    for row, own in enumerate(np.split(levels, _ends(colours)[:-1])):
        last = len(own) - 1
        ranks = [round(0.05 * last), round(0.99 * last)]
        low, high = np.sqrt(np.partition(own, ranks)[ranks]) / 255
        statistics["brightness_p5"][row], statistics["brightness_p99"][row] = low, high

    smalls = []
    for picture in samples:
        grey = picture.pixels.convert("L")
        if max(grey.size) == _SAMPLED_SIDE:
            # The same means as of a box filter, and cheaper.
            smalls.append(grey.reduce(_SAMPLED_SIDE // _SMALL_SIDE))
        else:
            smalls.append(_shrink(grey, _SMALL_SIDE, Image.Resampling.BOX))
    for row, own in enumerate(colours):
        # Compared as bytes: numpy's own comparison along so short an axis takes many times as long.
        red, green, blue = (own[:, channel].tobytes() for channel in range(3))
        image = smalls[row] if red == green == blue else tinies[row]
        statistics["entropy_bits"][row] = image.entropy()

    greys = [np.asarray(small) for small in smalls]
    counts = [np.bincount(grey.ravel(), minlength=_LEVELS) for grey in greys]
    statistics["histogram_std"] = np.array(counts).std(axis=1)
    # Standard deviations of edges, from sums of whole numbers, so exact up to the last step.
    edges = [_edges(grey) for grey in greys]
    ends = _ends(edges)
    starts, lengths = np.concatenate(([0], ends[:-1])), np.diff(ends, prepend=0)
    values = np.concatenate(edges).astype(np.int64)
    means = np.add.reduceat(values, starts) / lengths
    mean_squares = np.add.reduceat(values * values, starts) / lengths
    statistics["edges_std"] = np.sqrt(np.maximum(0.0, mean_squares - means * means))
    return statistics


def _shrink(image: Image.Image, side_px: int, method: Image.Resampling) -> Image.Image:
    """Return the image with its longer side at most `side_px`."""
    scale = side_px / max(image.size)
    if scale >= 1:
        return image
    width, height = image.size
    return image.resize((max(1, round(width * scale)), max(1, round(height * scale))), method)


def _thumbnails(
    pictures: Sequence[Image.Image],
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return grey levels, shape (n, 256), and colours, shape (n, 32), means of 4 × 4 pixels each.

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


def _edges(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the picture of edges as a vector, without the outermost pixels.

    As Pillow's FIND_EDGES, which leaves the outermost pixels as they are; in CleanVision they
    count, and hide most of what blur changes.
    """
    if min(grey.shape) < 3:
        return grey.ravel()
    wide = grey.astype(np.int16)
    rows = wide[:-2] + wide[1:-1] + wide[2:]
    around = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    return np.asarray(np.clip(9 * wide[1:-1, 1:-1] - around, 0, 255), np.uint8).ravel()


def _ends(vectors: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    return np.cumsum([len(vector) for vector in vectors])


def quality_flags(
    statistics: NDArray[Any], label_ids: NDArray[np.int64]
) -> dict[str, NDArray[np.bool_]]:
    """Return the issues of images (dtype STATISTICS) as flags, bool, shape (n,) each.

    dark: even the brightest percent is dark; light: even the darkest twentieth is white;
    low_information: the histogram's entropy is small; blurry: hardly any edges, in a picture whose
    grey levels are spread; odd_aspect_ratio: narrower than 0.35; odd_size: the square root of the
    area lies more than three quartile ranges outside the quartiles of its class.
    """
    width, height = statistics["width"].astype(np.float64), statistics["height"].astype(np.float64)
    sharpness = 1 - np.exp(-_BLUR_FACTOR * statistics["edges_std"])
    peaks = 1 - np.exp(-_BLUR_FACTOR * statistics["histogram_std"])
    sizes, odd = np.sqrt(width * height), np.zeros(len(statistics), dtype=bool)
    for label_id in np.unique(label_ids):
        members = np.flatnonzero(label_ids == label_id)
        low, high = np.percentile(sizes[members], [25, 75])
        margin = _QUARTILE_RANGES * (high - low)
        odd[members] = (sizes[members] < low - margin) | (sizes[members] > high + margin)
    return {
        "dark": statistics["brightness_p99"] < _DARK,
        "light": 1 - statistics["brightness_p5"] < _LIGHT,
        "low_information": _ENTROPY_FACTOR * statistics["entropy_bits"] < _LOW_INFORMATION,
        "blurry": sharpness + np.where(peaks <= _FLAT_HISTOGRAM, 0, peaks) < _BLUR,
        "odd_aspect_ratio": np.minimum(width / height, height / width) < _ASPECT_RATIO,
        "odd_size": odd,
    }


FLAG_MEANINGS = {
    "dark": "even the brightest percent of the pixels is dark",
    "light": "even the darkest twentieth of the pixels is nearly white",
    "low_information": "few different grey levels",
    "blurry": "hardly any edges",
    "odd_aspect_ratio": "one side is less than 0.35 of the other",
    "odd_size": "far larger or smaller than most of its class",
    "exact_duplicates": "another file has the same bytes",
    "near_duplicates": "another image shows the same picture",
    "label_conflict": "the same picture is also in another class",
}
