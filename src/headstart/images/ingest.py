"""From a folder of raw images to the manifest: each file read once, checked, grouped and split."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headstart.errors import DataError
from headstart.files import write_csv
from headstart.images.groups import find_groups, place
from headstart.images.labels import Entry
from headstart.images.layout import scan
from headstart.images.manifest import Manifest, make_manifest
from headstart.images.quality import quality_flags
from headstart.images.reader import Limits, Reading, read_images
from headstart.params.images import SPLITS, IngestParams

_NO_CLASS = "It lies beside the class folders, so it has no label."


@dataclass(frozen=True, slots=True)
class Rejection:
    """A file that is left out: a short reason code, and a sentence for a person."""

    path: str
    label: str
    reason: str
    sentence: str


@dataclass(frozen=True)
class Ingested:
    """What a folder of raw images came to; `duplicates` names the cluster of each manifest row."""

    manifest: Manifest
    rejected: list[Rejection]
    duplicates: list[int]
    n_decoded: int


def ingest(folder: Path, params: IngestParams, *, seed: int, cache: Path | None = None) -> Ingested:
    """Read every image of the class folders in `folder` once, group it, and place it in a split.

    `cache` is the file that remembers images from earlier runs.

    Raises:
        DataError: `folder` is not laid out as one of images.
    """
    layout = scan(folder)
    entries = layout.entries
    limits = Limits(params.max_pixels, params.max_file_mb)
    reading = read_images(folder, [entry.path for entry in entries], limits, cache=cache)
    rejected = [
        Rejection(entries[index].path, entries[index].label, *why)
        for index, why in sorted(reading.rejected.items())
    ]
    rejected += [Rejection(path, "", "no_class", _NO_CLASS) for path in layout.strays]
    accepted = np.array([i for i in range(len(entries)) if i not in reading.rejected], np.int64)
    manifest, duplicates = _manifest(
        [entries[i] for i in accepted], reading, accepted, params, seed
    )
    return Ingested(manifest, rejected, duplicates, reading.n_decoded)


def write_rejected(path: Path, rejected: list[Rejection]) -> None:
    """Write the list of files left out, sorted by path."""
    rows = sorted((r.path, r.label, r.reason, r.sentence) for r in rejected)
    write_csv(path, ("path", "label", "reason", "sentence"), rows)


def check_rejected(ingested: Ingested, params: IngestParams, listed_in: str) -> None:
    """Raise DataError if a larger fraction than allowed was left out."""
    rejected, total = len(ingested.rejected), len(ingested.manifest) + len(ingested.rejected)
    if rejected == 0 or rejected / total <= params.max_rejected_fraction:
        return
    raise DataError(
        f"at most {params.max_rejected_fraction:.1%} of the files may be left out "
        f"(ingest.max_rejected_fraction), but {rejected:,} of {total:,} ({rejected / total:.1%}) "
        f"were: see {listed_in} for each of them and the reason; mend or remove them, or raise the "
        "limit"
    )


def check_splits(ingested: Ingested, params: IngestParams) -> None:
    """Raise DataError if a class has too few images in a split."""
    manifest = ingested.manifest
    counts = Counter(zip(manifest.table["label"], manifest.splits, strict=True))
    rejected = Counter(rejection.label for rejection in ingested.rejected if rejection.label)
    for label in sorted({*manifest.classes, *rejected}):
        found = {split: counts[label, split] for split in SPLITS}
        if min(found.values()) < params.min_images_per_split:
            listed = ", ".join(f"{split} {count}" for split, count in found.items())
            raise DataError(
                f"every class needs at least {params.min_images_per_split} images in each split "
                f"(ingest.min_images_per_split), but {label!r} has {listed}, and "
                f"{rejected[label]} rejected: add images of it or remove it, or change "
                "ingest.split or the seed"
            )


def _manifest(
    entries: list[Entry], reading: Reading, rows: NDArray[np.int64], params: IngestParams, seed: int
) -> tuple[Manifest, list[int]]:
    facts = reading.facts[rows]
    classes = sorted({entry.label for entry in entries})
    ids = {label: index for index, label in enumerate(classes)}
    label_ids = np.array([ids[entry.label] for entry in entries], dtype=np.int64)
    groups = find_groups(
        facts, label_ids, [e.group for e in entries], max_bits=params.near_duplicate_bits
    )
    splits = place(groups.keys, [e.split for e in entries], seed=seed, fractions=params.split)
    columns: dict[str, Sequence[object] | NDArray[np.generic]] = {
        "path": [entry.path for entry in entries],
        "label": [entry.label for entry in entries],
        "sha256": [row.tobytes().hex() for row in facts["sha256"]],
        "size_bytes": facts["size_bytes"].astype(np.int64),
        "width": facts["width"].astype(np.int64),
        "height": facts["height"].astype(np.int64),
        "split": splits,
        "group": groups.keys,
        "exact_duplicate": groups.exact_duplicate,
        "near_duplicate": groups.near_duplicate,
        "label_conflict": groups.label_conflict,
        **quality_flags(facts, label_ids),
    }
    return make_manifest(columns), groups.duplicates.tolist()
