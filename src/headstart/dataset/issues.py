"""Quality flags from measures, by CleanVision's definitions and thresholds (0.3).

https://github.com/cleanlab/cleanvision, issue_managers/image_property.py. Nothing is dropped for a
flag.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_DARK, _LIGHT = 0.32, 0.05
_LOW_INFORMATION, _ENTROPY_FACTOR = 0.3, 0.1
_BLUR, _BLUR_FACTOR, _FLAT_HISTOGRAM = 0.29, 0.01, 0.18
_ASPECT_RATIO = 0.35
_QUARTILE_RANGES = 3.0


def quality_flags(
    statistics: NDArray[Any], label_ids: NDArray[np.int64]
) -> dict[str, NDArray[np.bool_]]:
    """Flags of images (dtype STATISTICS), bool, shape (n,) each.

    dark: even the brightest percent is dark; light: even the darkest twentieth is white;
    low_information: the histogram's entropy is small; blurry: hardly any edges, in a picture whose
    grey levels are spread; odd_aspect_ratio: narrower than 0.35; odd_size: the square root of the
    area lies more than three quartile ranges outside the quartiles of its class.
    """
    width, height = statistics["width"].astype(np.float64), statistics["height"].astype(np.float64)
    sharpness = 1 - np.exp(-_BLUR_FACTOR * statistics["edges_std"])
    peaks = 1 - np.exp(-_BLUR_FACTOR * statistics["histogram_std"])
    return {
        "dark": statistics["brightness_p99"] < _DARK,
        "light": 1 - statistics["brightness_p5"] < _LIGHT,
        "low_information": _ENTROPY_FACTOR * statistics["entropy_bits"] < _LOW_INFORMATION,
        "blurry": sharpness + np.where(peaks <= _FLAT_HISTOGRAM, 0, peaks) < _BLUR,
        "odd_aspect_ratio": np.minimum(width / height, height / width) < _ASPECT_RATIO,
        "odd_size": odd_sizes(np.sqrt(width * height), label_ids),
    }


def odd_sizes(sizes: NDArray[np.float64], label_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which sizes lie far outside the quartiles of their class, bool, shape (n,)."""
    odd = np.zeros(len(sizes), dtype=bool)
    for label_id in np.unique(label_ids):
        members = np.flatnonzero(label_ids == label_id)
        low, high = np.percentile(sizes[members], [25, 75])
        margin = _QUARTILE_RANGES * (high - low)
        odd[members] = (sizes[members] < low - margin) | (sizes[members] > high + margin)
    return odd


FLAG_MEANINGS = {
    "dark": "even the brightest percent of the pixels is dark",
    "light": "even the darkest twentieth of the pixels is nearly white",
    "low_information": "few different grey levels",
    "blurry": "hardly any edges",
    "odd_aspect_ratio": "one side is less than 0.35 of the other",
    "odd_size": "far larger or smaller than most of its class",
    "exact_duplicates": "another file has the same bytes",
    "near_duplicates": "another picture looks the same",
    "label_conflict": "the same picture is also in another class",
}
