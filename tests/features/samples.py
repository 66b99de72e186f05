"""Small real image files, and what an extraction of them needs."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headstart.dataset.manifest import FLAGS, Manifest, make_manifest
from headstart.encoders.runtimes import resolve
from headstart.features.extractor import Extractor
from headstart.features.feature_store import FeatureRows
from headstart.params.extract import ExtractParams
from headstart.params.image import ImageParams

SIZE_PX = 32
SPLITS = ("train", "train", "validation", "test")


def pixels(number: int, height: int = 40, width: int = 48) -> NDArray[np.uint8]:
    """Smooth colours with some noise: what a photo compresses like."""
    generator = np.random.default_rng(number)
    small = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noise = generator.integers(-8, 9, smooth.shape)
    return np.asarray(np.clip(smooth + noise, 0, 255), np.uint8)


def write_images(folder: Path, n_images: int, first: int = 0) -> None:
    """PNG and JPEG files in two class folders."""
    for number in range(first, first + n_images):
        suffix = "png" if number % 2 else "jpg"
        path = folder / ("cat", "dog")[number % 2] / f"{number:05}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number)).save(path)


def manifest_of(folder: Path) -> Manifest:
    """A manifest of all files in class folders."""
    paths = sorted(path for path in folder.glob("*/*") if path.is_file())
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    columns: dict[str, Sequence[object] | NDArray[np.generic]] = {
        "path": [path.relative_to(folder).as_posix() for path in paths],
        "label": [path.parent.name for path in paths],
        "sha256": digests,
        "size_bytes": [path.stat().st_size for path in paths],
        "width": [48] * len(paths),
        "height": [40] * len(paths),
        "split": [SPLITS[int(digest[0], 16) % 4] for digest in digests],
        "group": digests,
    }
    return make_manifest(columns | {flag: [False] * len(paths) for flag in ("split_given", *FLAGS)})


def extractor(
    cache_root: Path, extract: ExtractParams | None = None, size: int = SIZE_PX, seed: int = 0
) -> Extractor:
    """An extractor of small squares with the default encoder."""
    chosen = resolve(extract or ExtractParams())
    return Extractor(chosen, ImageParams(size=size), seed, cache_root, cache_root)


def feature_rows(n_images: int, seed: int = 0) -> FeatureRows:
    """Made-up rows of a store."""
    generator = np.random.default_rng(seed)
    digests = [generator.bytes(32).hex() for _ in range(n_images)]
    return FeatureRows(
        label_ids=generator.integers(0, 2, n_images),
        sha256=digests,
        paths=[f"class/{number} ä.png" for number in range(n_images)],
        splits=[SPLITS[number % 4] for number in range(n_images)],
        groups=[digest[:8] for digest in digests],
    )
