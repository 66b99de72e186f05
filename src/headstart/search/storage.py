"""Where a study lives: a journal file that survives kills, or any Optuna URL.

The journal is Optuna's own format; what is added is that a line cut short by a kill or a full disk
is removed before the next one is written, and that a lock dies with the process that held it.
"""

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

import optuna
from filelock import BaseFileLock, FileLock
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock
from optuna.storages.journal._storage import JournalOperation

from headstart.common.errors import SearchError, one_line
from headstart.common.files import writing
from headstart.common.secrets import without_secrets

HEARTBEAT_S = 30
_GRACE_S = 150


def open_storage(url: str | None, folder: Path, study_name: str) -> BaseStorage:
    """Open the storage of a study, made when it is not there.

    Args:
        url: an Optuna URL, or None for the journal file `<folder>/<study_name>.journal`.
    """
    if url is None:
        return JournalStorage(JournalFile(journal_path(folder, study_name)))
    try:
        with warnings.catch_warnings():
            # Heartbeats are how a database learns of dead workers; Optuna calls them experimental.
            warnings.simplefilter("ignore", ExperimentalWarning)
            return RDBStorage(url, heartbeat_interval=HEARTBEAT_S, grace_period=_GRACE_S)
    except Exception as error:
        raise SearchError(
            "search.storage must be an Optuna storage that can be reached, but "
            f"{without_secrets(url)} cannot: {without_secrets(one_line(error))}"
        ) from None


def has_heartbeats(storage: BaseStorage) -> TypeGuard[BaseHeartbeat]:
    """Whether workers tell this storage that they live: databases; a study holds them wrapped."""
    return isinstance(storage, BaseHeartbeat)


def study_exists(url: str | None, folder: Path, study_name: str) -> bool:
    """Whether the storage holds a study of that name."""
    if url is None and not journal_path(folder, study_name).exists():
        return False
    return study_name in optuna.get_all_study_names(open_storage(url, folder, study_name))


def journal_path(folder: Path, study_name: str) -> Path:
    """Where the journal of a study is."""
    return folder / f"{study_name}.journal"


def study_lock(folder: Path, study_name: str) -> BaseFileLock:
    """The lock under which trials of a study are given out, among processes of this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{study_name}.lock")


def neighbours(study: optuna.Study, url: str | None, folder: Path) -> Iterator[optuna.Study]:
    """The other studies of the same storage, by name; with journals, of the same folder."""
    if url is not None:
        names = sorted(optuna.get_all_study_names(study._storage))
        for name in names:
            if name != study.study_name:
                yield optuna.load_study(study_name=name, storage=study._storage)
        return
    for path in sorted(folder.glob("*.journal")):
        if path.stem != study.study_name:
            storage = JournalStorage(JournalFile(path))
            for name in optuna.get_all_study_names(storage):
                yield optuna.load_study(study_name=name, storage=storage)


class JournalFile(JournalFileBackend):
    """Optuna's journal file, mended where a writer died.

    Lines that only report an epoch are not flushed to the disk one by one: a crash of the machine
    may lose them, a kill of the process does not.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._held = _Held(path.with_suffix(".write-lock"))
        super().__init__(str(path), self._held)
        self._held.acquire()
        try:
            with path.open("r+b") as stream:
                _remove_half_line(stream)
        finally:
            self._held.release()

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append log entries, after removing what a dead writer left half-written."""
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        reports = JournalOperation.SET_TRIAL_INTERMEDIATE_VALUE
        durable = any(log["op_code"] != reports for log in logs)
        self._held.acquire()
        try:
            with writing(self._path), self._path.open("r+b") as stream:
                _remove_half_line(stream)
                stream.seek(0, os.SEEK_END)
                stream.write(text.encode())
                stream.flush()
                if durable:
                    os.fsync(stream.fileno())
        finally:
            self._held.release()


def _remove_half_line(stream: Any) -> None:
    """Cut a file after its last line end."""
    end = stream.seek(0, os.SEEK_END)
    if end == 0:
        return
    stream.seek(end - 1)
    if stream.read(1) == b"\n":
        return
    position = end
    while position > 0:
        start = max(0, position - 65536)
        stream.seek(start)
        found = stream.read(position - start).rfind(b"\n")
        if found >= 0:
            stream.truncate(start + found + 1)
            return
        position = start
    stream.truncate(0)


class _Held(BaseJournalFileLock):
    """A lock that the operating system lets go of when its holder dies."""

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(path)

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()
