"""Bringing files to another place without a second copy on disk, where that can be."""

import os
import shutil
import stat
import sys
from pathlib import Path

_FICLONE = 0x40049409  # linux/fs.h
_WRITABLE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


def bring_file(source: Path, target: Path) -> None:
    """The bytes of `source` at `target`: reflink, else hard link, else copy.

    Only a file that is write-protected is hard-linked, as those are that DVC holds. The owner of
    any other may edit it in place, and a hard link would carry the edit into DVC's cache, under
    the hash of what it was. A copy keeps the time of the source, by which known files are told.
    """
    status = source.stat()
    if not _reflink(source, target):
        if not status.st_mode & _WRITABLE:
            try:
                os.link(source, target)
                return
            except OSError:
                pass
        shutil.copyfile(source, target)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def readable_name(name: str) -> str:
    """A file name as it is, but for bytes that are no text and control characters, as %XX.

    DVC cannot list names that are not text.
    """
    return "".join(_printable(character) for character in name)


def _printable(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"%{code - 0xDC00:02X}"
    return f"%{code:02X}" if code < 0x20 or code == 0x7F else character


def _reflink(source: Path, target: Path) -> bool:
    if sys.platform != "linux":
        return False
    import fcntl

    try:
        with source.open("rb") as read, target.open("xb") as write:
            fcntl.ioctl(write.fileno(), _FICLONE, read.fileno())
    except OSError:
        target.unlink(missing_ok=True)
        return False
    return True
