"""The files below a folder that count: not hidden, no litter, links followed, loops survived."""

import os
import stat
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from headstart.common.errors import DataError

# What systems leave behind in folders; hidden files are ignored by their dot.
_LITTER = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "icon\r"})


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is left out without a word."""
    return name.startswith(".") or name.lower() in _LITTER


def is_file(path: Path) -> bool:
    """Whether there is a file; no, too, where no file could have such a name."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def files_below(folder: Path, start: str = "") -> Iterator[str]:
    """Posix paths, relative to `folder`, of the regular files below `folder/start`.

    A folder that several links lead to is listed once, by its own path where it has one.

    Raises:
        DataError: a folder cannot be listed.
    """
    return (path for path, is_folder in everything_below(folder, start) if not is_folder)


def everything_below(
    folder: Path, start: str = "", *, class_depth: int = 0
) -> Iterator[tuple[str, bool]]:
    """As `files_below`, with the folders too, and whether each path is a folder.

    Each of the folders `class_depth` below the start may list what others list too.
    """
    return _walk(folder, start, frozenset(), class_depth)


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


_Identity = tuple[int, int]


def _walk(
    folder: Path, start: str, above: frozenset[_Identity], class_depth: int
) -> Iterator[tuple[str, bool]]:
    if class_depth == 0:
        yield from _walk_class(folder, start, set(above))
        return
    identity = _identity(folder / start)
    if identity in above:
        return  # a link to a folder that it lies in
    for path, is_folder in _listed(folder, start):
        yield path, is_folder
        if is_folder:
            yield from _walk(folder, path, above | {identity}, class_depth - 1)


def _walk_class(folder: Path, start: str, seen: set[_Identity]) -> Iterator[tuple[str, bool]]:
    # Links come last, so that a folder is found by its own path first.
    links = deque([start])
    while links:
        yield from _walk_real(folder, links.popleft(), seen, links)


def _walk_real(
    folder: Path, start: str, seen: set[_Identity], links: deque[str]
) -> Iterator[tuple[str, bool]]:
    # Each real folder once: folders that link to one another have more paths than can be walked.
    identity = _identity(folder / start)
    if identity in seen:
        return
    seen.add(identity)
    for path, is_folder in _listed(folder, start):
        yield path, is_folder
        if is_folder and (folder / path).is_symlink():
            links.append(path)
        elif is_folder:
            yield from _walk_real(folder, path, seen, links)


def _listed(folder: Path, start: str) -> Iterator[tuple[str, bool]]:
    for name, is_folder in children(folder, start):
        yield (f"{start}/{name}" if start else name), is_folder


def _identity(folder: Path) -> _Identity:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _kind(entry: "os.DirEntry[str]") -> str:
    try:
        mode = entry.stat().st_mode
    except OSError:
        return ""  # a link to nothing, or a loop of links
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else ""
