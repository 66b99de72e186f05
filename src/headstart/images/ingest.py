"""From a folder of raw images to the manifest: each file read once, checked, grouped and split."""

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headstart.errors import DataError, one_line
from headstart.files import write_csv
from headstart.images.decode import RejectedImage, decode
from headstart.images.layout import Entry, scan
from headstart.images.manifest import FLAGS, Manifest, make_manifest
from headstart.images.splits import split_of
from headstart.params.images import SPLITS, IngestParams
from headstart.progress import progress


@dataclass(frozen=True, slots=True)
class Rejection:
    """A file that is left out: a short reason code, and a sentence for a person."""

    path: str
    label: str
    reason: str
    sentence: str


@dataclass(frozen=True)
class Ingested:
    """What a folder of raw images came to."""

    manifest: Manifest
    rejected: list[Rejection]


@dataclass(frozen=True, slots=True)
class _Row:
    entry: Entry
    sha256: str
    size_bytes: int
    width: int
    height: int


def ingest(folder: Path, params: IngestParams, *, seed: int) -> Ingested:
    """Read every image of the class folders in `folder` once, and place it in a split."""
    rows: list[_Row] = []
    rejected: list[Rejection] = []
    entries = scan(folder)
    for entry in progress(entries, total=len(entries), unit="images", title="ingest"):
        try:
            rows.append(_read(folder, entry, params))
        except RejectedImage as error:
            rejected.append(Rejection(entry.path, entry.label, error.code, str(error)))
    return Ingested(_manifest(rows, params, seed), rejected)


def write_rejected(path: Path, rejected: list[Rejection]) -> None:
    """Write the list of files left out, sorted by path."""
    rows = sorted((r.path, r.label, r.reason, r.sentence) for r in rejected)
    write_csv(path, ("path", "label", "reason", "sentence"), rows)


def check_rejected(ingested: Ingested, ingest: IngestParams, listed_in: str) -> None:
    """Raise DataError if a larger fraction than allowed was left out."""
    total = len(ingested.manifest) + len(ingested.rejected)
    fraction = len(ingested.rejected) / total
    if fraction > ingest.max_rejected_fraction:
        raise DataError(
            f"at most {ingest.max_rejected_fraction:.1%} of the files may be left out "
            f"(ingest.max_rejected_fraction), but {len(ingested.rejected):,} of {total:,} "
            f"({fraction:.1%}) were: each is listed with its reason in {listed_in}"
        )


def check_splits(manifest: Manifest, ingest: IngestParams) -> None:
    """Raise DataError if a class has too few images in a split."""
    counts = Counter(zip(manifest.table["label"], manifest.splits, strict=True))
    for label in manifest.classes:
        found = {split: counts[label, split] for split in SPLITS}
        if min(found.values()) < ingest.min_images_per_split:
            listed = ", ".join(f"{split} {count}" for split, count in found.items())
            raise DataError(
                f"every class needs at least {ingest.min_images_per_split} images in each split "
                f"(ingest.min_images_per_split), but {label!r} has {listed}: add images of it, or "
                "change ingest.split or the seed"
            )


def _read(folder: Path, entry: Entry, ingest: IngestParams) -> _Row:
    try:
        data = (folder / entry.path).read_bytes()
    except OSError as error:
        raise RejectedImage("unreadable", f"It cannot be read ({one_line(error)}).") from None
    height, width, _ = decode(data, max_pixels=ingest.max_pixels).shape
    return _Row(entry, hashlib.sha256(data).hexdigest(), len(data), width, height)


def _manifest(rows: list[_Row], ingest: IngestParams, seed: int) -> Manifest:
    by_hash: dict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        by_hash[row.sha256].append(row)
    flags = {name: np.zeros(len(rows), dtype=bool) for name in FLAGS}
    flags["exact_duplicate"] = np.array([len(by_hash[row.sha256]) > 1 for row in rows], dtype=bool)
    return make_manifest(
        {
            "path": [row.entry.path for row in rows],
            "label": [row.entry.label for row in rows],
            "sha256": [row.sha256 for row in rows],
            "size_bytes": [row.size_bytes for row in rows],
            "width": [row.width for row in rows],
            "height": [row.height for row in rows],
            "split": [split_of(row.sha256, seed=seed, fractions=ingest.split) for row in rows],
            "group": [row.sha256 for row in rows],
            **flags,
        }
    )
