"""Folders on disk: which files below one count, and how a file gets elsewhere without a copy."""

import contextlib
import os
import shutil
import stat
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from headstart.common.errors import DataError

# What systems leave behind in folders; hidden files are ignored by their dot.
_SYSTEM_FILES = frozenset(
    {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "icon\r"}
)
_FICLONE = 0x40049409  # linux/fs.h
_WRITABLE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


def is_ignored(name: str) -> bool:
    """Return whether a file or folder of this name does not count: hidden, or left by a system."""
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def is_file(path: Path) -> bool:
    """Return whether there is a file; no, too, where no file could have such a name."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def children(folder: Path, start: str = "") -> list[tuple[str, bool]]:
    """Return the names in `folder/start` that count, sorted, and whether each is a folder.

    Raises:
        DataError: the folder cannot be listed.
    """
    found = []
    try:
        with os.scandir(folder / start) as listing:
            for entry in listing:
                if is_ignored(entry.name):
                    continue
                try:
                    mode = entry.stat().st_mode
                except OSError:
                    continue  # a link to nothing, or a loop of links
                if stat.S_ISDIR(mode) or stat.S_ISREG(mode):
                    found.append((entry.name, stat.S_ISDIR(mode)))
    except PermissionError:
        raise DataError(
            f"every folder of images must be readable, but {folder / start} is not: permission "
            "denied; change its mode or owner"
        ) from None
    return sorted(found)


def files_below(folder: Path, start: str = "") -> Iterator[str]:
    """Yield posix paths, relative to `folder`, of the regular files below `folder/start`.

    A folder that several links lead to is listed once, by its own path where it has one.

    Raises:
        DataError: a folder cannot be listed.
    """
    return (path for path, is_folder in everything_below(folder, start) if not is_folder)


def everything_below(
    folder: Path, start: str = "", *, class_depth: int = 0
) -> Iterator[tuple[str, bool]]:
    """Yield as `files_below`, with the folders too, and whether each path is a folder.

    Each of the folders `class_depth` below the start may list what others list too.
    """
    return _walk(folder, start, frozenset(), class_depth)


_Identity = tuple[int, int]


def _walk(
    folder: Path, start: str, above: frozenset[_Identity], class_depth: int
) -> Iterator[tuple[str, bool]]:
    if class_depth == 0:
        # Links come last, so that a folder is found by its own path first.
        seen, links = set(above), deque([start])
        while links:
            yield from _walk_real(folder, links.popleft(), seen, links)
        return
    identity = _identity(folder / start)
    if identity in above:
        return  # a link to a folder that it lies in
    for path, is_folder in _paths_in(folder, start):
        yield path, is_folder
        if is_folder:
            yield from _walk(folder, path, above | {identity}, class_depth - 1)


def _walk_real(
    folder: Path, start: str, seen: set[_Identity], links: deque[str]
) -> Iterator[tuple[str, bool]]:
    # Each real folder once: folders that link to one another have more paths than can be walked.
    identity = _identity(folder / start)
    if identity in seen:
        return
    seen.add(identity)
    for path, is_folder in _paths_in(folder, start):
        yield path, is_folder
        if is_folder and (folder / path).is_symlink():
            links.append(path)
        elif is_folder:
            yield from _walk_real(folder, path, seen, links)


def _identity(folder: Path) -> _Identity:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _paths_in(folder: Path, start: str) -> Iterator[tuple[str, bool]]:
    for name, is_folder in children(folder, start):
        yield (f"{start}/{name}" if start else name), is_folder


def readable_name(name: str) -> str:
    """Return a file name with bytes that are no text, and control characters, as %XX.

    DVC cannot list names that are not text.
    """
    readable = []
    for character in name:
        code = ord(character)
        if 0xDC80 <= code <= 0xDCFF:
            code -= 0xDC00  # how Python keeps a byte that is no text
        elif code >= 0x20 and code != 0x7F:
            readable.append(character)
            continue
        readable.append(f"%{code:02X}")
    return "".join(readable)


def copy_or_link(source: Path, target: Path) -> None:
    """Put the bytes of `source` at `target`: by reflink, else hard link, else copy.

    Only a file that is write-protected is hard-linked, as those are that DVC holds. The owner of
    any other may edit it in place, and a hard link would carry the edit into DVC's cache, under
    the hash of what it was. A copy keeps the time of the source, by which known files are
    recognised.
    """
    status = source.stat()
    is_cloned = False
    if sys.platform == "linux":
        import fcntl

        try:
            with source.open("rb") as read, target.open("xb") as write:
                fcntl.ioctl(write.fileno(), _FICLONE, read.fileno())
            is_cloned = True
        except OSError:
            target.unlink(missing_ok=True)
    if not is_cloned and not status.st_mode & _WRITABLE:
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    if not is_cloned:
        shutil.copyfile(source, target)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
