"""Which workers live: each holds a lock file, which the operating system frees when it dies."""

import os
import socket
import uuid
from pathlib import Path

from filelock import FileLock, Timeout


class WorkerLock:
    """Held by a worker while it lives.

    Attributes:
        name: of the worker; begins with the machine's name.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = f"{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        self._folder = folder
        self._lock = FileLock(folder / f"{self.name}.lock")
        self._lock.acquire()

    def release(self) -> None:
        """Count as dead from now on."""
        self._lock.release()
        (self._folder / f"{self.name}.lock").unlink(missing_ok=True)

    def may_live(self, worker: str) -> bool:
        """Whether a worker holds its lock file, or is of another machine: its heartbeats tell."""
        if worker == self.name or not worker.startswith(f"{socket.gethostname()}."):
            return True
        path = self._folder / f"{worker}.lock"
        if not path.exists():
            return False
        try:
            with FileLock(path, timeout=0):
                pass
        except Timeout:
            return True
        path.unlink(missing_ok=True)
        return False
