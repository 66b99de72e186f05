"""WebDataset shards (https://github.com/webdataset/webdataset) → class folders.

A shard is a tar whose members that share a name up to its first dot are one sample: an image, and
its class as `.cls` (a number or a name), as `.json` (`label`, `cls` or `class`) or as `.txt`.
"""

import itertools
import json
import posixpath
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from headstart.common.errors import DataError
from headstart.common.progress import progress_bar
from headstart.params.split import Split
from headstart.sources.archives import ArchiveLimits, Budget, explained, is_tar, members
from headstart.sources.labels import splits_among
from headstart.sources.layout import is_labels_file, looks_like_image
from headstart.sources.linking import readable_name
from headstart.sources.walk import children, files_below, is_litter

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


def is_shard_folder(folder: Path) -> bool:
    """Whether a folder, with the folders in it, holds tar shards and no images."""
    names = list(files_below(folder))
    return any(name.endswith(".tar") for name in names) and not any(map(looks_like_image, names))


def is_shard(path: Path) -> bool:
    """Whether a single tar is a shard: among its first members there is a `.cls`, or an image and
    a `.json` or `.txt` of the same name, in no folder (in one, they lie beside images of a class).
    """
    if not is_tar(path):
        return False
    budget = Budget(path.name, ArchiveLimits(0, sys.maxsize))
    with explained(path):
        first = itertools.islice(members(path, budget), _MEMBERS_LOOKED_AT)
        names = [posixpath.normpath(member.name) for member in first]
    if any(name.endswith(".cls") for name in names):
        return True
    if any("/" in name or is_labels_file(name) for name in names):
        return False
    labelled = {_key(name)[0] for name in names if name.lower().endswith((".json", ".txt"))}
    return any(_key(name)[0] in labelled for name in names if looks_like_image(name))


def unpack_shards(source: Path, target: Path, limits: ArchiveLimits) -> int:
    """Write the samples of a shard, or of a folder of shards, to class folders below `target`.

    Shards in folders train, validation and test, or called so, make split folders. Returns how
    many images there are.

    Raises:
        DataError: a sample has no class, or a shard is hostile or damaged.
    """
    shards = _shards(source)
    classes = _class_names(source)
    splits = {name: _split_of_shard(name) for name in shards}
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
                    count += _place(sample, folder, f"{number:05d}", name, classes)
                    bar.update(1)
    return count


def _shards(source: Path) -> dict[str, Path]:
    if source.is_file():
        return {source.name: source}
    return {name: source / name for name in files_below(source) if name.endswith(".tar")}


def _class_names(source: Path) -> list[str]:
    """Names of the classes that shards give by number, if there is a list of them."""
    folder = source if source.is_dir() else source.parent
    here = {name for name, is_folder in children(folder) if not is_folder}
    for name in _CLASSES_FILES:
        if name in here and source.is_dir():
            try:
                text = (folder / name).read_text(encoding="utf-8-sig")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{name} must be UTF-8 text with a class name a line, but {folder / name} "
                    f"cannot be read ({error}): save it as UTF-8"
                ) from None
            return [line.strip() for line in text.splitlines() if line.strip()]
    return []


def _split_of_shard(name: str) -> Split | None:
    *folders, last = name.split("/")
    words = [*folders, re.split(r"[^A-Za-z]", last)[0]]
    found = splits_among(words)
    return next((found[word] for word in words if word in found), None)


def _samples(shard: Path, scratch: Path, budget: Budget) -> Iterator[_Sample]:
    """Samples of a shard, each with its image written to a scratch file."""
    sample: _Sample | None = None
    for member in members(shard, budget):
        key, name, suffix = _key(member.name)
        if member.stream is None or is_litter(name):
            continue
        if sample is None or sample.key != key:
            if sample is not None:
                yield sample
            sample = _Sample(key)
        if looks_like_image(name):
            # Beside the picture, x.jpg, there may be others of it, such as the mask x.seg.png.
            is_plain = "." not in suffix
            if sample.image is not None and (sample.is_plain or not is_plain):
                continue
            sample.image, sample.is_plain = scratch / ".image", is_plain
            sample.suffix = "." + suffix.rpartition(".")[2].lower()
            _write(sample.image, _chunks(member.stream, member.name, budget))
        elif suffix.lower() in ("cls", "json", "txt"):
            data = member.stream.read(_MOST_LABEL_BYTES)
            budget.count_bytes(member.name, len(data))
            sample.labels[suffix.lower()] = data.decode("utf-8", "replace").strip()
    if sample is not None:
        yield sample


def _key(member: str) -> tuple[str, str, str]:
    """What a sample's members share, a member's name, and what follows the name's first dot."""
    folder, _, name = member.replace("\\", "/").rpartition("/")
    stem, _, suffix = name.partition(".")
    return f"{folder}/{stem}", name, suffix


def _chunks(stream: IO[bytes], name: str, budget: Budget) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK_BYTES):
        budget.count_bytes(name, len(chunk))
        yield chunk


def _write(path: Path, chunks: Iterable[bytes]) -> None:
    with path.open("wb") as stream:
        stream.writelines(chunks)


def _place(sample: _Sample, folder: Path, number: str, shard: str, classes: list[str]) -> int:
    """Move a sample's image to its class folder; returns 1, or 0 for a sample without an image."""
    if sample.image is None:
        return 0
    label = _label(sample, shard)
    if label.isdigit() and int(label) < len(classes):
        label = classes[int(label)]
    label = readable_name(label)
    if not label or "/" in label or "\\" in label or is_litter(label):
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


def _label(sample: _Sample, shard: str) -> str:
    if "cls" in sample.labels:
        return sample.labels["cls"]
    if "json" in sample.labels:
        try:
            values = json.loads(sample.labels["json"])
        except (ValueError, RecursionError):
            values = None
        if isinstance(values, dict):
            found = [values[key] for key in _LABEL_KEYS if key in values]
            if found and isinstance(found[0], str | int):
                return str(found[0])
    if sample.labels.get("txt"):
        return sample.labels["txt"]
    raise DataError(
        f"every sample of a shard must have its class as .cls, .json or .txt, but {sample.key!r} "
        f"of {shard} has none: write one when the shards are made"
    )
