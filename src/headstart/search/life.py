"""Which workers live: each holds a lock file, which the operating system frees when it dies."""

import os
import socket
import uuid
from pathlib import Path

from filelock import FileLock, Timeout


class LifeLine:
    """A worker's proof of life.

    Attributes:
        name: of the worker; begins with the machine's name.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = f"{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        self._folder = folder
        self._lock = FileLock(self._path(self.name))
        self._lock.acquire()

    def release(self) -> None:
        """Count as dead from now on."""
        self._lock.release()
        self._path(self.name).unlink(missing_ok=True)

    def is_alive(self, worker: str) -> bool:
        """Whether another worker of this folder holds its lock file."""
        path = self._path(worker)
        if worker == self.name:
            return True
        if not path.exists():
            return False
        try:
            with FileLock(path, timeout=0):
                pass
        except Timeout:
            return True
        path.unlink(missing_ok=True)
        return False

    @staticmethod
    def is_of_this_machine(worker: str) -> bool:
        """Whether a worker's name is one that this machine gave."""
        return worker.startswith(f"{socket.gethostname()}.")

    def _path(self, worker: str) -> Path:
        return self._folder / f"{worker}.lock"
