"""Unpacking zip and tar archives that are hostile until shown otherwise.

Only regular files are ever written, and only below the target: links are never made, what they
point to inside the archive is copied to their place. Anything else is refused by its name.
"""

import bz2
import gzip
import io
import lzma
import posixpath
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from headstart.common.errors import DataError, one_line
from headstart.common.progress import progress_bar
from headstart.sources.folders import copy_or_link, is_ignored, readable_name

_CHUNK_BYTES = 1 << 20
# Headers are read whole; no honest one comes near this.
_MOST_HEADER_BYTES = 1 << 24
_MOST_LINKS_IN_A_ROW = 40  # as Linux follows


@dataclass(frozen=True)
class ArchiveLimits:
    """What an archive may unpack to, against compression bombs."""

    max_bytes: int
    max_members: int


@dataclass(frozen=True)
class Member:
    """A regular file in an archive, or a link to another; `stream` reads the former."""

    name: str
    stream: IO[bytes] | None
    link: str | None = None


def is_archive(path: Path) -> bool:
    """Return whether a file is a zip or tar archive, whatever it is called."""
    return _is_zip(path) or is_tar(path)


def is_tar(path: Path) -> bool:
    """Return whether a file is a tar archive, compressed or not."""
    try:
        with _open_tar(path) as archive:
            return archive.next() is not None
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError):
        return False


def unpack(archive: Path, target: Path, limits: ArchiveLimits) -> int:
    """Unpack the files of an archive to `target`; returns how many.

    Raises:
        DataError: a member is hostile, the archive is damaged, or it unpacks to too much.
    """
    budget = Budget(archive.name, limits)
    links: list[tuple[str, str]] = []
    count = 0
    with explained(archive), progress_bar(total=0, unit="files", title="fetch") as bar:
        for member in members(archive, budget):
            path = _inside(member.name, budget)
            if path is None or any(is_ignored(part) for part in path.split("/")):
                continue
            if member.link is not None:
                links.append((path, member.link))
            if member.stream is None:
                continue
            destination = target / path
            try:
                destination.parent.mkdir(parents=True, exist_ok=True)
                with destination.open("xb") as out:
                    while chunk := member.stream.read(_CHUNK_BYTES):
                        budget.count_bytes(member.name, len(chunk))
                        out.write(chunk)
            except (FileExistsError, NotADirectoryError):
                if destination.is_file():
                    raise budget.refuse(
                        member.name, "is there twice; pack it again with each file once"
                    ) from None
                raise budget.refuse(member.name, "is both a file and a folder") from None
            count += 1
            bar.update(1)
        count += _resolve_links(target, links, budget)
    return count


def members(archive: Path, budget: "Budget") -> Iterator[Member]:
    """Yield the files and links of an archive, in its order; streams hold until the next member.

    Raises:
        DataError: a member is hostile, or there are too many. Damage raises nearly anything: see
            `explained`.
    """
    if _is_zip(archive):
        with zipfile.ZipFile(archive) as packed:
            for info in packed.infolist():
                name = info.filename
                budget.count_member(name)
                kind = stat.S_IFMT(info.external_attr >> 16)
                if info.is_dir():
                    _inside(name, budget)
                    continue
                if kind not in (0, stat.S_IFREG, stat.S_IFLNK):
                    raise budget.refuse(name, "is a device or another special file")
                if info.flag_bits & 0x1:
                    raise budget.refuse(name, "is encrypted; pack it without a password")
                with packed.open(info) as stream:
                    if kind == stat.S_IFLNK:
                        pointed_to = stream.read(4096).decode("utf-8", "replace")
                        link = _link(name, pointed_to, posixpath.dirname(name), budget)
                        yield Member(name, None, link)
                    else:
                        yield Member(name, stream)
        return
    with _open_tar(archive) as tar:
        while (header := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # or it keeps every member for look-ups by name
            name = header.name
            budget.count_member(name)
            if header.isdir():
                _inside(name, budget)
            elif header.isreg():
                yield Member(name, tar.extractfile(header))
            elif header.issym():
                folder = posixpath.dirname(name)
                yield Member(name, None, _link(name, header.linkname, folder, budget))
            elif header.islnk():
                yield Member(name, None, _link(name, header.linkname, "", budget))
            else:
                raise budget.refuse(name, "is a device or another special file")
        # tarfile takes a damaged header for the end of the archive; the end is zeros or nothing.
        rest: Any = tar.fileobj
        rest.seek(tar.offset)
        if rest.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"a damaged header at byte {tar.offset:,}")


@contextmanager
def explained(archive: Path) -> Iterator[None]:
    """Turn what a damaged archive raises into an error that names it."""
    try:
        yield
    except (
        zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError,
        NotImplementedError, RuntimeError, ValueError, OverflowError,
    ) as error:  # fmt: skip
        raise DataError(
            f"the archive {archive.name} cannot be read to its end ({one_line(error)}): download "
            "or pack it again"
        ) from None
    except OSError as error:
        raise DataError(
            f"the archive {archive.name} cannot be unpacked: {one_line(error)}"
        ) from None


class Budget:
    """Counts what an archive unpacks to, and refuses its members by name."""

    def __init__(self, archive: str, limits: ArchiveLimits) -> None:
        self.archive = archive
        self._bytes_left = limits.max_bytes
        self._members_left = limits.max_members
        self._limits = limits

    def count_member(self, name: str) -> None:
        self._members_left -= 1
        if self._members_left < 0:
            raise self.refuse(
                name,
                f"is one more than the {self._limits.max_members:,} that it may have: "
                "unpack it yourself, and give the folder as data.source",
            )

    def count_bytes(self, name: str, n: int) -> None:
        self._bytes_left -= n
        if self._bytes_left < 0:
            raise self.refuse(
                name,
                f"makes it larger than the {self._limits.max_bytes / 1e9:g} GB that it may "
                "unpack to (data.max_archive_gb); it may be a compression bomb",
            )

    def refuse(self, name: str, why: str) -> DataError:
        """Return the error that says why a member is refused."""
        return DataError(f"the archive {self.archive} is refused: its member {name!r} {why}")


def _inside(name: str, budget: Budget) -> str | None:
    """Return a member's posix path below the target; none for the target itself."""
    path = name.replace("\\", "/")
    if path.startswith("/") or re.match("[A-Za-z]:", path):
        raise budget.refuse(name, "has an absolute path")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise budget.refuse(name, "leaves its folder by '..'")
    return "/".join(readable_name(part) for part in parts) or None


def _resolve_links(target: Path, links: list[tuple[str, str]], budget: Budget) -> int:
    """Copy the files that links point to into the links' places; returns how many.

    A link may lead to a link further on, or through a linked folder: what leads nowhere yet is
    tried again after the others. Links to nothing and to a folder that they lie in are left out.
    """
    count = 0
    waiting = [
        (path, link)
        for path, link in links
        if link != "." and not f"{path}/".startswith(f"{link}/")
    ]
    for _ in range(_MOST_LINKS_IN_A_ROW):
        # Files first, so that a folder is copied with what links in it point to. Of folders those
        # in which no other link lies, for the same reason; where links lie in all, the first.
        ready = [pair for pair in waiting if (target / pair[1]).is_file()]
        if not ready:
            to_folders = [pair for pair in waiting if (target / pair[1]).is_dir()]
            holding = {
                parent.as_posix()
                for path, _ in to_folders
                for parent in PurePosixPath(path).parents
            }
            ready = [pair for pair in to_folders if pair[1] not in holding] or to_folders[:1]
        if not ready:
            break
        for path, link in ready:
            source, destination = target / link, target / path
            if destination.exists():
                continue
            found = sorted(source.rglob("*")) if source.is_dir() else [source]
            for file in filter(Path.is_file, found):
                copy = destination / file.relative_to(source)
                budget.count_member(path)
                budget.count_bytes(path, file.stat().st_size)
                try:
                    copy.parent.mkdir(parents=True, exist_ok=True)
                except (FileExistsError, NotADirectoryError):
                    raise budget.refuse(path, "is both a file and a folder") from None
                copy_or_link(file, copy)
                count += 1
        done = set(ready)
        waiting = [pair for pair in waiting if pair not in done]
    return count


def _link(name: str, pointed_to: str, folder: str, budget: Budget) -> str:
    """Return where a link leads, as a path below the target."""
    path = posixpath.normpath(posixpath.join(folder, pointed_to.replace("\\", "/")))
    if path.startswith(("/", "../")) or path == ".." or re.match("[A-Za-z]:", path):
        raise budget.refuse(name, f"links to {pointed_to!r}, which lies outside")
    return "/".join(readable_name(part) for part in path.split("/"))


def _is_zip(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


@contextmanager
def _open_tar(path: Path) -> Iterator[tarfile.TarFile]:
    with path.open("rb") as raw:
        magic = raw.read(6)
        raw.seek(0)
        stream: Any = raw
        if magic.startswith(b"\x1f\x8b"):
            stream = gzip.GzipFile(fileobj=raw)
        elif magic.startswith(b"BZh"):
            stream = bz2.BZ2File(raw)
        elif magic == b"\xfd7zXZ\x00":
            stream = lzma.LZMAFile(raw)  # noqa: SIM115 (closed below)
        elif magic.startswith(b"\x28\xb5\x2f\xfd"):
            raise DataError(
                f"the archive {path.name} is compressed with zstd: unpack it to a folder first"
            )
        guarded: Any = _Guarded(stream)
        with stream, tarfile.open(fileobj=guarded, mode="r:", errorlevel=1) as archive:
            yield archive


class _Guarded(io.RawIOBase):
    """A stream that does not read more at once than an honest header or chunk has."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def read(self, size: int = -1, /) -> bytes:
        if size < 0 or size > _MOST_HEADER_BYTES:
            raise tarfile.ReadError("a header of absurd size")
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()
