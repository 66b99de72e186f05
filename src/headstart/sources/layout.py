"""What a folder of images means: which files are images of which class, split and group.

Three layouts: class folders; folders train, validation and test with class folders in each; and a
labels.csv beside the images. Knows nothing of what is in the files.
"""

import mimetypes
import posixpath
import shlex
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from headstart.common.errors import DataError
from headstart.params.split import Split
from headstart.sources.labels import (
    LABELS_FILE,
    Entry,
    composed,
    explain_missing,
    read_labels,
    splits_among,
)
from headstart.sources.walk import children, files_below, is_file

_IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".avif", ".jp2"}
    | {".heic", ".ico", ".ppm", ".pgm"}
)
# The types that Python knows: those that a system knows differ.
_TYPES = mimetypes.MimeTypes()


@dataclass(frozen=True)
class Layout:
    """Files that are meant to be images, sorted by path, and pictures that no class claims.

    `left_out` are images that have no label and need none: those of an unlabelled test folder, and
    those that labels.csv does not list. `notes` are sentences for the user.
    """

    entries: list[Entry]
    strays: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def scan(folder: Path, called: str | None = None) -> Layout:
    """Find the images of a folder in one of the three layouts.

    Args:
        called: what the user calls the folder, for errors.

    Raises:
        DataError: the folder cannot be meant as it is: there are no classes, only one, or an empty
            one; there is a folder beside the splits; or labels.csv has mistakes.
    """
    called = (called or str(folder)).rstrip("/")
    labels_files = _labels_files(folder)
    if len(labels_files) > 1:
        raise DataError(
            f"there must be one {LABELS_FILE}, but {called} has {_shown(labels_files)}: remove one"
        )
    if labels_files:
        layout = _listed(folder, labels_files[0], called)
    elif splits := split_folders(folder):
        layout = _split_folders(folder, splits, called)
    else:
        layout = _class_folders(folder, "", None, called)
    classes = sorted({entry.label for entry in layout.entries})
    if len(classes) < 2:
        found = f"there is only {classes[0]!r}" if classes else "there is none"
        raise DataError(
            f"a classifier needs at least two classes, but {found} in {called}: give each class "
            f"a folder of its own directly below it, or write a {LABELS_FILE}"
        )
    return Layout(
        sorted(layout.entries, key=lambda entry: entry.path),
        sorted(layout.strays),
        sorted(layout.left_out),
        [*layout.notes, *_two_spellings(layout.entries)],
    )


def check_class_names(layout: Layout, called: str) -> None:
    """Refuse classes that are called like a split, or that differ in letter case alone.

    Raises:
        DataError: there are such classes in the folder that the user calls `called`.
    """
    example = {entry.label: entry.path for entry in reversed(layout.entries)}
    keep = "or, if that is what the classes are called, set data.class_names: as_given"
    splits = sorted(splits_among(example))
    if splits:
        shown = ", ".join(f"{name!r}" for name in splits)
        raise DataError(
            f"a class may not be called like a split, but {called} has {shown}, such as "
            f"{example[splits[0]]}: put class folders into train, validation and test, or write a "
            f"{LABELS_FILE} with a column split; move unlabelled images out of {called} "
            f"(`headstart predict` classifies them); {keep}"
        )
    alike: dict[str, list[str]] = defaultdict(list)
    for label in sorted(example):
        alike[_folded(label)].append(label)
    for names in alike.values():
        if len(names) > 1:
            shown = " and ".join(f"{name!r} ({example[name]})" for name in names)
            raise DataError(
                f"names of classes must differ by more than letter case and spaces, but {called} "
                f"has {shown}: give each class one name; {keep}"
            )


def check_class_files(layout: Layout, called: str) -> None:
    """Refuse classes whose files are no images by their names, such as annotations of the others.

    Raises:
        DataError: there are such classes, and others, in the folder that the user calls `called`.
    """
    with_images = {entry.label for entry in layout.entries if looks_like_image(entry.path)}
    without: dict[str, str] = {}
    for entry in layout.entries:
        if entry.label not in with_images:
            kind, _ = _TYPES.guess_type(f"./{entry.path}")  # as it stands, `data:` begins a URL
            if kind is None or kind.startswith("image/"):
                with_images.add(entry.label)  # as far as can be told
            without.setdefault(entry.label, entry.path)
    refused = sorted(without.keys() - with_images)
    if refused and with_images:
        raise DataError(
            f"every class must have images, but {called} has none of {refused[0]!r}, only files "
            f"such as {without[refused[0]]}: move them out of {called}; if they describe the other "
            "images, sort those into class folders"
        )


def is_labels_file(name: str) -> bool:
    """Whether a file is called labels.csv, in any letter case."""
    return name.lower() == LABELS_FILE


def split_folders(folder: Path, start: str = "") -> dict[str, Split]:
    """Return the folders in `folder/start` that are splits: train with class folders in it, and
    others; none if there is no such train, or nothing but it.
    """
    splits = splits_among(_folders(folder, start))
    trains = [name for name, split in splits.items() if split == "train"]
    if len(splits) > 1 and any(_folders(folder, posixpath.join(start, name)) for name in trains):
        return splits
    return {}


def outer_folder(folder: Path, start: str = "", but: Collection[str] = ()) -> str:
    """Return the path below `folder` of what holds the layout: `start`, or the innermost of the
    folders below it that are alone in one another.

    A single folder with images in it is a class. So is one whose name is in `but`.
    """
    seen = {(folder / start).resolve()}
    while True:
        names, has_images = _folders(folder, start), bool(_images(folder, start))
        if len(names) != 1 or has_images or names[0] in but or _labels_files(folder, start):
            return start
        inner = posixpath.join(start, names[0])
        holds_layout = _labels_files(folder, inner) or split_folders(folder, inner)
        holds_classes = _folders(folder, inner) and not _images(folder, inner)
        if not (holds_layout or holds_classes) or (folder / inner).resolve() in seen:
            return start
        start = inner
        seen.add((folder / start).resolve())


def looks_like_image(name: str) -> bool:
    """Whether a file is called like an image; what it is, its bytes say."""
    return PurePosixPath(name).suffix.lower() in _IMAGE_SUFFIXES


def _listed(folder: Path, name: str, called: str) -> Layout:
    entries = read_labels(folder / name, f"{called}/{name}")
    listed = {entry.path for entry in entries}
    files = list(files_below(folder))
    left_out = [path for path in files if looks_like_image(path) and path not in listed]
    # Listed files may be hidden, or lie where two links lead.
    missing = sorted(path for path in listed.difference(files) if not is_file(folder / path))
    notes = []
    if left_out:
        some = _counted(left_out, "image is", "images are")
        notes.append(f"{some} not in {name}, such as {left_out[0]}: left out")
    if missing:
        hint = explain_missing(missing, files)
        hint = f" ({hint})" if hint else ""
        if len(missing) == len(listed):
            raise DataError(
                f"{called}/{name} must name images by their paths below its folder, but none of "
                f"its {len(listed):,} is there, such as {missing[0]!r}{hint}: correct the paths"
            )
        are = "is" if len(missing) == 1 else "are"
        notes.append(
            f"{len(missing):,} of the {len(listed):,} images in {name} {are} not there, such as "
            f"{missing[0]!r}{hint}"
        )
    return Layout(entries, [], left_out, notes)


def _split_folders(folder: Path, splits: dict[str, Split], called: str) -> Layout:
    beside = [
        name
        for name in _folders(folder)
        if name not in splits and any(map(looks_like_image, files_below(folder, name)))
    ]
    if beside:
        raise DataError(
            f"beside folders of splits ({_shown(splits)}) there may be no others with images, but "
            f"{called} has {_shown(beside)}: move them out of {called}, or, if they are classes, "
            "into each split"
        )
    found = Layout([], _images(folder))
    classes: set[str] = set()
    for name in sorted(splits, key=lambda name: (splits[name] != "train", name)):
        files = list(files_below(folder, name))
        start = outer_folder(folder, name, classes)
        here = [composed(inner) for inner in _folders(folder, start)]
        if splits[name] == "train":
            classes.update(here)
        known = {_folded(label) for label in classes}
        unknown = [label for label in here if _folded(label) not in known]
        is_unlabelled = not here or (len(here) == 1 and len(unknown) == 1)
        if not files and not here:
            continue
        if is_unlabelled and splits[name] == "test":
            images = [path for path in files if looks_like_image(path)] or files
            found.left_out.extend(images)
            some = _counted(images, "image", "images")
            path = shlex.quote(f"data/fetched/{name}")
            found.notes.append(
                f"{name}/ holds {some} without class folders: left out; `headstart predict {path}` "
                f"classifies {'it' if len(images) == 1 else 'them'}"
            )
        elif is_unlabelled or unknown:
            has = f"has {_shown(unknown)}, no class of train" if unknown else "has no class folders"
            raise DataError(
                f"a folder of a split must hold the class folders that train holds, but "
                f"{called}/{start} {has}: sort its images into class folders, list all images in "
                f"a {LABELS_FILE}, or move it out of {called}"
            )
        else:
            part = _class_folders(folder, start, splits[name], called)
            found.entries.extend(part.entries)
            found.strays.extend(part.strays)
            if start != name:
                found.notes.append(f"everything in {name}/ is in {start}/: what is in there counts")
    if {entry.split for entry in found.entries} == {"train"}:
        # No split is given; so it is as if the class folders stood alone.
        return replace(found, entries=[replace(entry, split=None) for entry in found.entries])
    return found


def _class_folders(folder: Path, start: str, split: Split | None, called: str) -> Layout:
    names = _folders(folder, start)
    if not names:
        raise DataError(
            "data.source must hold a folder for each class with images in it, but there are no "
            f"folders in {called}: make class folders, or a {LABELS_FILE}"
        )
    entries = []
    for name in names:
        below = posixpath.join(start, name)
        found = [Entry(path, composed(name), split) for path in files_below(folder, below)]
        if not found:
            raise DataError(
                f"every class folder must hold images, but {called}/{below} is empty: add images "
                "or remove the folder"
            )
        entries += found
    inner = {name: splits_among(_folders(folder, posixpath.join(start, name))) for name in names}
    notes = [
        f"{_shown(f'{name}/{part}' for part in parts)} are not taken for splits: those stand "
        "outside the class folders, as in train/<class>"
        for name, parts in inner.items()
        if len(set(parts.values())) > 1
    ]
    return Layout(
        entries, [posixpath.join(start, name) for name in _images(folder, start)], notes=notes[:1]
    )


def _two_spellings(entries: Sequence[Entry]) -> list[str]:
    """Say which classes come from folders whose names differ in how Unicode composes them."""
    spelled: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        if not entry.label.isascii():
            parts = entry.path.split("/")[:-1]
            spelled[entry.label].update(part for part in parts if composed(part) == entry.label)
    return [
        f"folders called {label!r} in composed and in decomposed Unicode are one class"
        for label, names in sorted(spelled.items())
        if len(names) > 1
    ]


def _counted(names: Collection[str], one: str, several: str) -> str:
    return f"{len(names):,} {one if len(names) == 1 else several}"


def _folders(folder: Path, start: str = "") -> list[str]:
    return [name for name, is_folder in children(folder, start) if is_folder]


def _labels_files(folder: Path, start: str = "") -> list[str]:
    here = children(folder, start)
    return [name for name, is_folder in here if not is_folder and is_labels_file(name)]


def _images(folder: Path, start: str = "") -> list[str]:
    here = children(folder, start)
    return [name for name, is_folder in here if not is_folder and looks_like_image(name)]


def _folded(label: str) -> str:
    """A name as it is compared: without letter case, width and surplus spaces."""
    return " ".join(unicodedata.normalize("NFKC", label).casefold().split())


def _shown(names: Iterable[str]) -> str:
    *first, last = sorted(names)
    return f"{', '.join(first)} and {last}" if first else last
