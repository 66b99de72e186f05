"""Large JPEGs decoded at a fraction of their size: the time, and what it changes.

    python -m bench.decode [--quick]

Photographs of the test assets, enlarged to 12 megapixels with a camera's noise, quality 90. Beside
each other, image by image on one core: decoded in full and resized; at the fraction, as
`decode_input` does; and Pillow's own draft mode and resizing. Accuracy is that of logistic
regression (scikit-learn's) on EfficientNet-Lite0's last map, over the same five folds.
"""

import argparse
import io
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from bench.common import Target, print_table, write_results
from headstart.common.machine import usable_cores
from headstart.common.paths import cache_folder
from headstart.encoders.runtimes import open_forward, resolve
from headstart.features.extractor import Extractor
from headstart.images.decode import decode, decode_input, resize
from headstart.params.extract import ExtractParams
from headstart.params.image import ImageParams

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("HEADSTART_TEST_ASSETS") or ROOT.parent / "shared" / "assets")
IMAGE = ImageParams()
_BATCH = 16
Decode = Callable[[bytes], NDArray[np.uint8]]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run that writes no results")
    quick = parser.parse_args().quick
    paths = sorted((ASSETS / "animals").rglob("*.jpg"))
    paths = paths[:: 60 if quick else 3]  # of every class
    labels = np.array([path.parent.name for path in paths])
    ways: dict[str, Decode] = {
        "in full": lambda data: resize(decode(data), IMAGE),
        "at a fraction": lambda data: decode_input(data, IMAGE),
        "Pillow's draft": _draft,
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    pixels: dict[str, list[NDArray[np.uint8]]] = {way: [] for way in ways}
    for number, path in enumerate(paths):
        data = _photograph(path, number)
        for way, function in ways.items():
            started = time.perf_counter()
            pixels[way].append(function(data))
            seconds[way].append(time.perf_counter() - started)
    extractor = Extractor(resolve(ExtractParams()), IMAGE, 0, ROOT, cache_folder())
    forward = open_forward(extractor.frozen(), "onnxruntime", "float32", usable_cores())
    width = extractor.blocks(0)["head_relu"].stop
    features = {
        way: np.concatenate(
            [
                forward(np.stack(some[start : start + _BATCH]))[:, :width]
                for start in range(0, len(some), _BATCH)
            ]
        )
        for way, some in pixels.items()
    }
    rows: list[list[object]] = []
    accuracy = {}
    whole = features["in full"]
    folds = StratifiedKFold(2 if quick else 5, shuffle=True, random_state=0)
    for way, some in features.items():
        found = cross_val_predict(LogisticRegression(max_iter=1000), some, labels, cv=folds)
        accuracy[way] = 100 * float((found == labels).mean())
        cosine = (some * whole).sum(axis=1) / (
            np.linalg.norm(some, axis=1) * np.linalg.norm(whole, axis=1)
        )
        milliseconds = 1000 * statistics.median(seconds[way])
        rows.append([way, round(milliseconds, 1), float(cosine.min()), round(accuracy[way], 2)])
    headers = ["decoded", "ms an image, median", "least cosine of features", "accuracy %"]
    print_table(headers, rows)
    ratio = statistics.median(
        full / part for full, part in zip(seconds["in full"], seconds["at a fraction"], strict=True)
    )
    lost = accuracy["in full"] - accuracy["at a fraction"]
    targets = [
        Target("12 megapixels: at a fraction over in full", ratio, "times", 4.0, ">="),
        Target("12 megapixels: accuracy lost to the fraction", lost, "points", 0.2, "<="),
    ]
    if not quick:
        write_results("decode", targets, headers, rows)


def _photograph(path: Path, number: int) -> bytes:
    """The picture enlarged to 4,000 × 3,000 pixels, with noise."""
    with Image.open(path) as image:
        large = image.convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC)
    chance = np.random.default_rng(number)
    noise = chance.integers(-8, 9, (3000, 4000, 1), np.int16)
    levels = np.clip(np.asarray(large, np.int16) + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _draft(data: bytes) -> NDArray[np.uint8]:
    """As the usual loop has it, without orientation, colour profile or checks."""
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (IMAGE.size, IMAGE.size))
        return np.asarray(image.resize((IMAGE.size, IMAGE.size), Image.Resampling.BICUBIC))


if __name__ == "__main__":
    main()
