"""The files below a folder that count: not hidden, no litter, links followed, loops survived."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from headstart.errors import DataError

# What systems leave behind in folders; hidden files are ignored by their dot.
_LITTER = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "icon\r"})


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is left out without a word."""
    return name.startswith(".") or name.lower() in _LITTER


def files_below(folder: Path, start: str = "") -> Iterator[str]:
    """Posix paths, relative to `folder`, of the regular files below `folder/start`.

    Raises:
        DataError: a folder cannot be listed.
    """
    return (path for path, is_folder in everything_below(folder, start) if not is_folder)


def everything_below(folder: Path, start: str = "") -> Iterator[tuple[str, bool]]:
    """As `files_below`, with the folders too, and whether each path is a folder."""
    return _walk(folder, start, frozenset())


def children(folder: Path, start: str = "") -> list[tuple[str, bool]]:
    """Names in `folder/start` that count, sorted, and whether each is a folder.

    Raises:
        DataError: the folder cannot be listed.
    """
    try:
        with os.scandir(folder / start) as listing:
            found = [(entry.name, _kind(entry)) for entry in listing if not is_litter(entry.name)]
    except PermissionError:
        raise DataError(
            f"every folder of images must be readable, but {folder / start} is not: permission "
            "denied; change its mode or owner"
        ) from None
    return sorted((name, kind == "folder") for name, kind in found if kind)


def _walk(
    folder: Path, start: str, above: frozenset[tuple[int, int]]
) -> Iterator[tuple[str, bool]]:
    status = (folder / start).stat()
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return  # a link to a folder that it lies in
    for name, is_folder in children(folder, start):
        path = f"{start}/{name}" if start else name
        yield path, is_folder
        if is_folder:
            yield from _walk(folder, path, above | {identity})


def _kind(entry: "os.DirEntry[str]") -> str:
    try:
        mode = entry.stat().st_mode
    except OSError:
        return ""  # a link to nothing, or a loop of links
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else ""
