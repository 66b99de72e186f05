"""WebDataset shards (https://github.com/webdataset/webdataset) → class folders.

A shard is a tar whose members that share a name up to its first dot are one sample: an image, and
its class as `.cls` (a number or a name), as `.json` (`label`, `cls` or `class`) or as `.txt`.
"""

import itertools
import json
import posixpath
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from headstart.common.errors import DataError
from headstart.common.progress import progress_bar
from headstart.params.split import Split
from headstart.sources.archives import ArchiveLimits, Budget, explained, is_tar, members
from headstart.sources.folders import children, files_below, is_ignored, readable_name
from headstart.sources.layout import has_image_suffix, is_labels_file, splits_among

_CHUNK_BYTES = 1 << 20
_MOST_LABEL_BYTES = 1 << 20
_CLASSES_FILES = ("classes.txt", "classnames.txt")
_LABEL_KEYS = ("label", "cls", "class", "class_name", "label_name")
_MEMBERS_LOOKED_AT = 16


@dataclass
class _Sample:
    key: str
    image: Path | None = None
    suffix: str = ""
    is_plain: bool = False
    labels: dict[str, str] = field(default_factory=dict)


def is_sharded(source: Path) -> bool:
    """Return whether a folder holds tar shards and no images, or a file is a shard.

    A shard has among its first members a `.cls`, or an image and a `.json` or `.txt` of the same
    name, in no folder (in one, they lie beside images of a class).
    """
    if source.is_dir():
        files = list(files_below(source))
        has_shards = any(name.endswith(".tar") for name in files)
        return has_shards and not any(map(has_image_suffix, files))
    if not is_tar(source):
        return False
    budget = Budget(source.name, ArchiveLimits(0, sys.maxsize))
    with explained(source):
        first = itertools.islice(members(source, budget), _MEMBERS_LOOKED_AT)
        names = [posixpath.normpath(member.name) for member in first]
    if any(name.endswith(".cls") for name in names):
        return True
    if any("/" in name or is_labels_file(name) for name in names):
        return False
    labelled = {_key(name)[0] for name in names if name.lower().endswith((".json", ".txt"))}
    return any(_key(name)[0] in labelled for name in names if has_image_suffix(name))


def unpack_shards(source: Path, target: Path, limits: ArchiveLimits) -> int:
    """Write the samples of a shard, or of a folder of shards, to class folders below `target`.

    Shards in folders train, validation and test, or called so, make split folders. Returns how
    many images there are.

    Raises:
        DataError: a sample has no class, or a shard is hostile or damaged.
    """
    shards, class_names = {source.name: source}, list[str]()
    if source.is_dir():
        shards = {name: source / name for name in files_below(source) if name.endswith(".tar")}
        here = {name for name, is_folder in children(source) if not is_folder}
        # What classes are called that shards give by number.
        if lists := [name for name in _CLASSES_FILES if name in here]:
            try:
                text = (source / lists[0]).read_text(encoding="utf-8-sig")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{lists[0]} must be UTF-8 text with a class name a line, but "
                    f"{source / lists[0]} cannot be read ({error}): save it as UTF-8"
                ) from None
            class_names = [line.strip() for line in text.splitlines() if line.strip()]
    splits: dict[str, Split | None] = {}
    for name in shards:
        *folders, last = name.split("/")
        words = [*folders, re.split(r"[^A-Za-z]", last)[0]]
        found = splits_among(words)
        splits[name] = next((found[word] for word in words if word in found), None)
    if len({*splits.values()} - {None}) < 2:
        splits = dict.fromkeys(shards)
    if None in splits.values() and any(splits.values()):
        beside = next(name for name, split in splits.items() if split is None)
        raise DataError(
            "where shards are called like splits, all must be, so that none lands in the wrong "
            f"one, but {source.name} has {beside}: rename it or move it out"
        )
    budget = Budget(source.name, limits)
    count = 0
    with progress_bar(total=0, unit="images", title="fetch") as bar:
        for number, (name, shard) in enumerate(shards.items()):
            folder = target / (splits[name] or "")
            with explained(shard):
                for sample in _samples(shard, target, budget):
                    count += _move_to_class(sample, folder, f"{number:05d}", name, class_names)
                    bar.update(1)
    return count


def _samples(shard: Path, scratch: Path, budget: Budget) -> Iterator[_Sample]:
    """Yield the samples of a shard, each with its image written to a scratch file."""
    sample: _Sample | None = None
    for member in members(shard, budget):
        key, name, suffix = _key(member.name)
        if member.stream is None or is_ignored(name):
            continue
        if sample is None or sample.key != key:
            if sample is not None:
                yield sample
            sample = _Sample(key)
        if has_image_suffix(name):
            # Beside the picture, x.jpg, there may be others of it, such as the mask x.seg.png.
            is_plain = "." not in suffix
            if sample.image is not None and (sample.is_plain or not is_plain):
                continue
            sample.image, sample.is_plain = scratch / ".image", is_plain
            sample.suffix = "." + suffix.rpartition(".")[2].lower()
            with sample.image.open("wb") as out:
                while chunk := member.stream.read(_CHUNK_BYTES):
                    budget.count_bytes(member.name, len(chunk))
                    out.write(chunk)
        elif suffix.lower() in ("cls", "json", "txt"):
            data = member.stream.read(_MOST_LABEL_BYTES)
            budget.count_bytes(member.name, len(data))
            sample.labels[suffix.lower()] = data.decode("utf-8", "replace").strip()
    if sample is not None:
        yield sample


def _key(member: str) -> tuple[str, str, str]:
    """Return what a sample's members share, a member's name, and what follows its first dot."""
    folder, _, name = member.replace("\\", "/").rpartition("/")
    stem, _, suffix = name.partition(".")
    return f"{folder}/{stem}", name, suffix


def _move_to_class(
    sample: _Sample, folder: Path, number: str, shard: str, class_names: list[str]
) -> int:
    """Move a sample's image to its class folder; returns 1, or 0 for a sample without an image."""
    if sample.image is None:
        return 0
    label = sample.labels.get("cls")
    if label is None and "json" in sample.labels:
        try:
            values = json.loads(sample.labels["json"])
        except (ValueError, RecursionError):
            values = None
        if isinstance(values, dict):
            given = next((values[key] for key in _LABEL_KEYS if key in values), None)
            label = str(given) if isinstance(given, str | int) else None
    if label is None:
        label = sample.labels.get("txt") or None
    if label is None:
        raise DataError(
            "every sample of a shard must have its class as .cls, .json or .txt, but "
            f"{sample.key!r} of {shard} has none: write one when the shards are made"
        )
    if label.isdigit() and int(label) < len(class_names):
        label = class_names[int(label)]
    label = readable_name(label)
    if not label or "/" in label or "\\" in label or is_ignored(label):
        raise DataError(
            f"a class must be usable as a folder name, but sample {sample.key!r} of {shard} has "
            f"{label!r}: rename the class in the shards"
        )
    name = readable_name(sample.key.strip("/").replace("/", "_"))
    destination = folder / label / f"{number}_{name}{sample.suffix}"
    destination.parent.mkdir(parents=True, exist_ok=True)
    if destination.exists():
        raise DataError(
            f"a shard must have each sample once and in one piece, but {shard} has {sample.key!r} "
            "twice: write the shard again"
        )
    sample.image.rename(destination)
    return 1
