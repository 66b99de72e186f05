"""Image folders that bench/extract.py runs on, and manifests of them."""

import hashlib
import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headstart.dataset.manifest import FLAGS, Manifest, make_manifest
from headstart.params.data import DataParams
from headstart.sources.data_source import fetch

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("HEADSTART_TEST_ASSETS") or ROOT.parent / "shared" / "assets")


def photos() -> Path | None:
    """600 photos of cats, dogs and pandas, where the test assets are at hand."""
    folder = ASSETS / "animals"
    return folder if folder.is_dir() else None


def silhouettes(folder: Path) -> Path:
    """The default data: 1,500 small pictures in ten classes, written into `folder`."""
    fetch(ROOT, folder, DataParams())
    return folder


def manifest_of(folder: Path, limit: int | None = None) -> Manifest:
    """A manifest of images in class folders; with a limit, evenly spread over them."""
    paths = sorted(path for path in folder.glob("*/*") if path.is_file())
    if limit is not None and limit < len(paths):
        paths = [paths[i] for i in np.linspace(0, len(paths) - 1, limit).astype(int)]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    columns: dict[str, Sequence[object] | NDArray[np.generic]] = {
        "path": [path.relative_to(folder).as_posix() for path in paths],
        "label": [path.parent.name for path in paths],
        "sha256": digests,
        "size_bytes": [path.stat().st_size for path in paths],
        "width": [10_000] * len(paths),
        "height": [10_000] * len(paths),
        "split": ["train"] * len(paths),
        "group": digests,
    }
    return make_manifest(columns | {flag: [False] * len(paths) for flag in ("split_given", *FLAGS)})


def variants(source: Path, folder: Path, n_images: int) -> Path:
    """So many different files, made of the photos in `source` by moving their frame."""
    originals = sorted(path for path in source.glob("*/*") if path.is_file())
    for number in range(n_images):
        path = originals[number % len(originals)]
        shift = number // len(originals)
        target = folder / path.parent.name / f"{shift:03}-{path.stem}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            width, height = image.size
            moved = image.convert("RGB").crop((shift, shift, width, height))
        buffer = BytesIO()
        moved.save(buffer, "JPEG", quality=90)
        target.write_bytes(buffer.getvalue())
    return folder
