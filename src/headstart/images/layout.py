"""What a folder of images means: which files are images of which class, split and group."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from headstart.errors import DataError
from headstart.params.images import Split

# What systems leave behind in folders; hidden files are ignored by their dot.
_LITTER = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "icon\r"})


@dataclass(frozen=True, slots=True)
class Entry:
    """A file that is meant to be an image: posix path below the folder, and what is said of it."""

    path: str
    label: str
    split: Split | None = None
    group: str | None = None


def scan(folder: Path) -> list[Entry]:
    """All files of the class folders in `folder`, sorted by path.

    Raises:
        DataError: there are no class folders, only one, or an empty one.
    """
    classes = [name for name, is_folder in _children(folder, "") if is_folder]
    if not classes:
        raise DataError(
            f"data.source must hold a folder for each class with images in it, but it has no "
            f"folders: {folder}"
        )
    entries = []
    for label in classes:
        found = [Entry(path, label) for path in files_below(folder, label)]
        if not found:
            raise DataError(
                f"the class folder {label!r} must hold images, but it is empty: add images or "
                "remove the folder"
            )
        entries += found
    if len(classes) < 2:
        raise DataError(
            f"a classifier needs at least two classes, but there is only {classes[0]!r}: add "
            "another class folder"
        )
    return sorted(entries, key=lambda entry: entry.path)


def files_below(folder: Path, start: str = "") -> Iterator[str]:
    """Posix paths, relative to `folder`, of the regular files below `folder/start`.

    Hidden files and the litter of operating systems are left out. Links are followed; a link to a
    folder that it lies in is not.

    Raises:
        DataError: a folder cannot be listed.
    """
    return (path for path, is_folder in everything_below(folder, start) if not is_folder)


def everything_below(folder: Path, start: str = "") -> Iterator[tuple[str, bool]]:
    """As `files_below`, with the folders too, and whether each path is a folder."""
    return _walk(folder, start, frozenset())


def _walk(
    folder: Path, start: str, above: frozenset[tuple[int, int]]
) -> Iterator[tuple[str, bool]]:
    status = (folder / start).stat()
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    for name, is_folder in _children(folder, start):
        path = f"{start}/{name}" if start else name
        yield path, is_folder
        if is_folder:
            yield from _walk(folder, path, above | {identity})


def _children(folder: Path, start: str) -> list[tuple[str, bool]]:
    """Names in a folder that count, sorted, and whether each is a folder."""
    try:
        with os.scandir(folder / start) as listing:
            found = [(entry.name, _kind(entry)) for entry in listing if not is_litter(entry.name)]
    except PermissionError:
        raise DataError(
            f"every folder of images must be readable, but {folder / start} is not: permission "
            "denied; change its mode or owner"
        ) from None
    return sorted((name, kind == "folder") for name, kind in found if kind)


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is left out without a word."""
    return name.startswith(".") or name.lower() in _LITTER


def _kind(entry: "os.DirEntry[str]") -> str:
    try:
        mode = entry.stat().st_mode
    except OSError:
        return ""  # a link to nothing, or a loop of links
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else ""
