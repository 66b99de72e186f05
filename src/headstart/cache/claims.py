"""Who extracts what, when several processes fill the same cache at once.

Each process lists the images it works on in a file of its own, beside a lock that it holds; a
lock that nobody holds belongs to a process that ended, and its claims are void. Everything
happens under one short lock. Knows nothing of features.
"""

import contextlib
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from headstart.common.files import writing

_DIGEST_BYTES = 32


class Claims:
    """The claims of this process among those of others, in `folder`. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.taking = FileLock(folder / "taking.lock", thread_local=False)
        self._name = uuid.uuid4().hex
        self._own = FileLock(self._lock_path(self._name), thread_local=False)
        self._mine: set[str] = set()

    def __enter__(self) -> Self:
        while True:
            # Whoever held the lock before may have removed the folder, to make room.
            self.folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError), self.taking:
                self._own.acquire()
                return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self.taking:
            self._own.release()
            self._remove(self._name)

    def others(self) -> set[str]:
        """What living processes claim, as hexadecimal sha256s. Call while holding `taking`."""
        claimed: set[str] = set()
        for lock in self.folder.glob("*.lock"):
            if lock.stem in (self._name, "taking"):
                continue
            if _is_held(lock):
                claimed.update(_read(lock.with_suffix(".keys")))
            else:
                self._remove(lock.stem)
        return claimed

    def claim(self, sha256: Iterable[str]) -> None:
        """Add images to this process's claims. Call while holding `taking`."""
        self._mine.update(sha256)
        self._write()

    def done(self, sha256: Iterable[str]) -> None:
        """Drop claims whose rows are in the cache."""
        self._mine.difference_update(sha256)

    def _write(self) -> None:
        keys = b"".join(bytes.fromhex(digest) for digest in self._mine)
        path = self.folder / f"{self._name}.keys"
        with writing(path):
            path.write_bytes(keys)

    def _lock_path(self, name: str) -> Path:
        return self.folder / f"{name}.lock"

    def _remove(self, name: str) -> None:
        for path in (self.folder / f"{name}.keys", self._lock_path(name)):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def _read(path: Path) -> list[str]:
    data = path.read_bytes() if path.exists() else b""
    starts = range(0, len(data), _DIGEST_BYTES)
    return [data[start : start + _DIGEST_BYTES].hex() for start in starts]


def anybody_claims(folder: Path) -> bool:
    """Whether a living process holds claims in `folder`."""
    locks = [path for path in folder.glob("*.lock") if path.stem != "taking"]
    return any(_is_held(path) for path in locks)


@contextlib.contextmanager
def nobody_claims(folder: Path) -> Iterator[bool]:
    """Whether no living process holds claims in `folder`; none begins to before the end."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "taking.lock", thread_local=False):
        yield not anybody_claims(folder)


def _is_held(path: Path) -> bool:
    try:
        with FileLock(path, thread_local=False).acquire(blocking=False):
            return False
    except Timeout:
        return True
