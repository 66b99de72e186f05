"""From a folder of raw images to the manifest: each file read once, checked, grouped and split."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headstart.common.errors import DataError
from headstart.common.files import write_csv
from headstart.dataset.duplicates import find_groups
from headstart.dataset.image_statistics import quality_flags
from headstart.dataset.manifest import Manifest, make_manifest
from headstart.dataset.reader import Limits, read_images
from headstart.dataset.splits import Key, Thresholds, assign_splits
from headstart.images.input_pixels import InputPixels
from headstart.params.ingest import IngestParams
from headstart.params.split import SPLITS
from headstart.sources.layout import scan

# A file is read whole into memory.
MAX_FILE_MB = 1000.0
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
    """What a folder of raw images came to.

    `duplicates` names the duplicate group of each manifest row, `thresholds` are those of
    splits.csv with what was first seen here, and `cannot_split` says of each class with a single
    group why.
    """

    manifest: Manifest
    rejected: list[Rejection]
    duplicates: list[int]
    thresholds: dict[Key, Thresholds]
    cannot_split: dict[str, str]
    n_decoded: int


def ingest(
    folder: Path,
    params: IngestParams,
    *,
    seed: int,
    thresholds: Mapping[Key, Thresholds],
    cache: Path | None = None,
    pixels: InputPixels | None = None,
) -> Ingested:
    """Read every image of the class folders in `folder` once, group it, and assign it to a split.

    `thresholds` are those by which classes were split before; `cache` is the file of what
    earlier runs found of images; `pixels` keeps the input pixels of those that are decoded.

    Raises:
        DataError: `folder` is not laid out as one of images.
    """
    layout = scan(folder)
    entries = layout.entries
    limits = Limits(params.max_pixels, MAX_FILE_MB)
    paths = [entry.path for entry in entries]
    image = None if pixels is None else pixels.image
    with nullcontext() if pixels is None else pixels.keeping() as keep:
        reading = read_images(folder, paths, limits, cache=cache, image=image, on_pixels=keep)
    rejected = [
        Rejection(entries[index].path, entries[index].label, *why)
        for index, why in sorted(reading.rejected.items())
    ]
    rejected += [Rejection(path, "", "no_class", _NO_CLASS) for path in layout.without_class]
    accepted = np.array([i for i in range(len(entries)) if i not in reading.rejected], np.int64)
    entries, statistics = [entries[i] for i in accepted], reading.statistics[accepted]
    labels = [entry.label for entry in entries]
    classes = sorted(set(labels))
    ids = {label: index for index, label in enumerate(classes)}
    label_ids = np.array([ids[label] for label in labels], dtype=np.int64)
    groups = find_groups(
        statistics, label_ids, [e.group for e in entries], max_bits=params.near_duplicate_bits
    )
    assigned = assign_splits(
        groups.keys,
        labels,
        [entry.split for entry in entries],
        seed=seed,
        fractions=params.split,
        known=thresholds,
    )
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, label in enumerate(labels):
        rows_of[label].append(row)
    cannot_split = {}
    for label, rows in rows_of.items():
        first, key = entries[rows[0]].path, groups.keys[rows[0]]
        if any(groups.keys[row] != key or entries[row].split for row in rows):
            continue
        if len(rows) == 1:
            cannot_split[label] = f"its only image is {first}"
        elif len({groups.duplicates[row] for row in rows}) == 1:
            cannot_split[label] = f"its {len(rows):,} images are copies of one image, {first}"
        else:
            cannot_split[label] = f"its {len(rows):,} images are in one group, {key!r}"

    columns: dict[str, Sequence[object] | NDArray[np.generic]] = {
        "path": [entry.path for entry in entries],
        "label": labels,
        "sha256": [row.tobytes().hex() for row in statistics["sha256"]],
        "size_bytes": statistics["size_bytes"].astype(np.int64),
        "width": statistics["width"].astype(np.int64),
        "height": statistics["height"].astype(np.int64),
        "split": assigned.splits,
        # Validation that is taken from a given train did not come with the data.
        "split_given": [e.split == s for e, s in zip(entries, assigned.splits, strict=True)],
        "group": groups.keys,
        "exact_duplicates": groups.exact_duplicates,
        "near_duplicates": groups.near_duplicates,
        "label_conflict": groups.label_conflict,
        **quality_flags(statistics, label_ids),
    }
    return Ingested(
        make_manifest(columns),
        rejected,
        groups.duplicates.tolist(),
        assigned.thresholds,
        cannot_split,
        reading.n_decoded,
    )


def write_rejected(path: Path, rejected: list[Rejection]) -> None:
    """Write the list of files left out, sorted by path."""
    rows = sorted((r.path, r.label, r.reason, r.sentence) for r in rejected)
    write_csv(path, ("path", "label", "reason", "sentence"), rows)


def check_ingested(ingested: Ingested, params: IngestParams, listed_in: str) -> str:
    """Return a warning that names the classes with few images in a split, empty without any.

    Raises:
        DataError: a larger fraction than allowed was rejected (`listed_in` says what), or classes
            cannot be split, or have no image in train.
    """
    manifest, allowed = ingested.manifest, params.max_rejected_fraction
    rejected, total = len(ingested.rejected), len(manifest) + len(ingested.rejected)
    if rejected and rejected / total > allowed:
        raise DataError(
            f"at most {allowed:.1%} of the files may be left out "
            f"(ingest.max_rejected_fraction), but {rejected:,} of {total:,} "
            f"({rejected / total:.1%}) were: see {listed_in} for each of them and the reason; fix "
            "or remove them, or raise the limit"
        )
    of_label = Counter(rejection.label for rejection in ingested.rejected if rejection.label)
    reasons = {
        label: f"all of its {count:,} files were rejected"
        for label, count in of_label.items()
        if label not in manifest.classes
    } | ingested.cannot_split
    if reasons:
        listed = [f"{label!r}: {reasons[label]}" for label in sorted(reasons)]
        raise DataError(
            "every class needs images in at least 2 duplicate groups, so that one can train it and "
            f"another test it, but {_some_of(listed)}; add other images of it, or remove the class"
        )
    counts = Counter(zip(manifest.table["label"], manifest.splits, strict=True))
    untrained = [repr(label) for label in manifest.classes if not counts[label, "train"]]
    if untrained:
        raise DataError(
            "every class needs images in train, but as splits are given or were chosen before "
            f"(data/splits.csv) these have none: {_some_of(untrained)}; give train some of their "
            "images, or delete their lines in data/splits.csv"
        )
    few = [
        f"{label!r} ({', '.join(f'{split} {counts[label, split]:,}' for split in SPLITS)})"
        for label in manifest.classes
        if min(counts[label, split] for split in SPLITS) < params.min_images_per_split
    ]
    if not few:
        return ""
    return (
        f"{len(few):,} of {len(manifest.classes):,} classes have fewer than "
        f"{params.min_images_per_split} images in a split (ingest.min_images_per_split), so what "
        f"is measured of them is uncertain: {_some_of(few)}; add images of them, or, where there "
        "are enough, delete their lines in data/splits.csv to split them anew"
    )


def _some_of(listed: list[str]) -> str:
    more = f"; and {len(listed) - 10:,} more" if len(listed) > 10 else ""
    return "; ".join(listed[:10]) + more
