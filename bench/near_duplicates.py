"""How many changed copies of photographs are found again: `python -m bench.near_duplicates`.

600 photos of the test assets, each changed, and all of them compared with all originals at once;
docs/data.md has the table. Nothing is timed.
"""

import hashlib
import io
import multiprocessing
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from bench.common import Target, print_table, write_results
from headstart.dataset.duplicates import find_near_duplicates
from headstart.dataset.image_statistics import inspect
from headstart.images.decode import decode

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("HEADSTART_TEST_ASSETS") or ROOT.parent / "shared" / "assets")
_MAX_PIXELS = 10**8
Change = Callable[[Image.Image], Image.Image]
ORIENTATIONS = {
    "as it is": None,
    "mirrored": Image.Transpose.FLIP_LEFT_RIGHT,
    "quarter turn": Image.Transpose.ROTATE_90,
    "half turn": Image.Transpose.ROTATE_180,
    "three quarter turns": Image.Transpose.ROTATE_270,
    "upside down": Image.Transpose.FLIP_TOP_BOTTOM,
    "transposed": Image.Transpose.TRANSPOSE,
    "transversed": Image.Transpose.TRANSVERSE,
}


def _same(image: Image.Image) -> Image.Image:
    return image


def _cropped(image: Image.Image, fraction: float) -> Image.Image:
    x, y = round(image.width * fraction), round(image.height * fraction)
    return image.crop((x, y, image.width - x, image.height - y))


def _halved(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)


def _enhanced(image: Image.Image, kind: Any, factor: float) -> Image.Image:
    enhanced: Image.Image = kind(image).enhance(factor)
    return enhanced


def _grey(image: Image.Image, weights: Sequence[float]) -> Image.Image:
    levels = np.asarray(image, np.float32) @ np.asarray(weights, np.float32)
    return Image.fromarray(np.clip(levels.round(), 0, 255).astype(np.uint8))


def _cast(image: Image.Image) -> Image.Image:
    levels = np.asarray(image, np.float32) * (1.05, 1, 0.95)
    return Image.fromarray(np.clip(levels.round(), 0, 255).astype(np.uint8))


def _hue(image: Image.Image, degrees: float) -> Image.Image:
    hsv = np.asarray(image.convert("HSV")).copy()
    hsv[..., 0] += np.uint8(round(degrees * 256 / 360))
    return Image.fromarray(hsv, "HSV").convert("RGB")


# What is done to a photo, and the JPEG quality at which it is saved then; None: as PNG.
CHANGES: dict[str, tuple[Change, int | None]] = {
    "the same pixels": (_same, None),
    "JPEG of quality 60": (_same, 60),
    "JPEG of quality 30": (_same, 30),
    "halved, quality 75": (_halved, 75),
    **{f"cropped by {f:.0%} on every side": (partial(_cropped, fraction=f), 90) for f in
       (0.01, 0.02, 0.03, 0.05, 0.1)},
    "darkened by a tenth": (partial(_enhanced, kind=ImageEnhance.Brightness, factor=0.9), 90),
    "brightened by a tenth": (partial(_enhanced, kind=ImageEnhance.Brightness, factor=1.1), 90),
    "contrast less by a fifth": (partial(_enhanced, kind=ImageEnhance.Contrast, factor=0.8), 90),
    "saturation less by a fifth": (partial(_enhanced, kind=ImageEnhance.Color, factor=0.8), 90),
    "grey (Rec. 601)": (partial(_grey, weights=(0.299, 0.587, 0.114)), 90),
    "grey (Rec. 709)": (partial(_grey, weights=(0.2126, 0.7152, 0.0722)), 90),
    "5 % more red, 5 % less blue": (_cast, 90),
    **{f"hues turned by {d}°": (partial(_hue, degrees=d), 90) for d in (10, 30, 60)},
}  # fmt: skip
TURNED = tuple(CHANGES)[:7]


def facts_of(path: Path, cells: Sequence[tuple[str, str]]) -> list[NDArray[Any]]:
    """Return what ingest knows of a photo and of each change of it, rows of dtype STATISTICS."""
    data = path.read_bytes()
    original = Image.fromarray(decode(data, max_pixels=_MAX_PIXELS))
    rows = [_inspected(data)]
    for name, orientation in cells:
        change, quality = CHANGES[name]
        image, way = change(original), ORIENTATIONS[orientation]
        image = image if way is None else image.transpose(way)
        buffer = io.BytesIO()
        if quality is None:
            image.save(buffer, "PNG", compress_level=1)
        else:
            image.save(buffer, "JPEG", quality=quality)
        rows.append(_inspected(buffer.getvalue()))
    return rows


def _inspected(data: bytes) -> NDArray[Any]:
    return inspect(data, hashlib.sha256(data).digest(), max_pixels=_MAX_PIXELS)


def main() -> None:
    """Measure, print and write."""
    paths = sorted((ASSETS / "animals").rglob("*.jpg"))
    cells = [(name, "as it is") for name in CHANGES]
    cells += [(name, "mirrored") for name in TURNED] + [(n, "quarter turn") for n in TURNED[:5]]
    cells += [("the same pixels", name) for name in tuple(ORIENTATIONS)[3:]]
    with multiprocessing.get_context("forkserver").Pool() as pool:
        statistics = pool.map(partial(facts_of, cells=cells), paths, chunksize=10)
    originals = [rows[0] for rows in statistics]
    n = len(paths)
    rows: list[list[object]] = []
    wrong = 0
    for column, (name, orientation) in enumerate(cells, start=1):
        both = np.concatenate([*originals, *(found[column] for found in statistics)])
        clusters = find_near_duplicates(both, max_bits=4).turned
        rows.append(
            [name, orientation, round(100 * float((clusters[:n] == clusters[n:]).mean()), 1)]
        )
        wrong += int((clusters[:n] != np.arange(n)).sum())
    headers = ["change", "orientation", "found, %"]
    print_table(headers, rows)
    target = Target("different photos taken for one, all changes", wrong, "photos", 0, "<=")
    write_results("near_duplicates", [target], headers, rows)


if __name__ == "__main__":
    main()
