"""Every error that a user can fix. Each message states the rule, what was got, and the remedy.

The command line prints these without a traceback; anything else is a defect of ours.
"""

import errno
import os
from pathlib import Path


class HeadstartError(Exception):
    """Base class: something that the user can fix."""


class ParamsError(HeadstartError):
    """params.yaml holds something that is not allowed."""


class DataError(HeadstartError):
    """The images, archives or labels given cannot be used as they are."""


class FormatError(HeadstartError):
    """A file is not of the format and version that this code reads."""


class WeightsError(HeadstartError):
    """Encoder weights are missing, or not the ones they claim to be."""


class SearchError(HeadstartError):
    """The search for a head cannot start or go on."""


class TrainingError(HeadstartError):
    """A model cannot be trained, assembled or exported as asked."""


class TrackingError(HeadstartError):
    """The tracking database or server lacks something, or cannot be reached."""


class DiskError(HeadstartError, OSError):
    """A file cannot be written: no room, no permission, or something else in its place."""


class ServingError(HeadstartError):
    """A prediction request cannot be answered."""


# Libraries whose own errors are told to the user as ours are: what they hold is beyond our checks.
_TRACKING_LIBRARIES = {"mlflow", "sqlalchemy", "sqlite3", "alembic"}


def of_tracking_library(error: Exception) -> TrackingError | None:
    """The error of MLflow or its database as one of ours; None if it is of something else."""
    if type(error).__module__.partition(".")[0] not in _TRACKING_LIBRARIES:
        return None
    return TrackingError(
        f"MLflow must be able to use its database, but it said: {one_line(error)}: look with "
        "`headstart doctor`; `headstart --debug` before a command shows the traceback"
    )


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_ROOM_SIGNS = (os.strerror(errno.ENOSPC), "database or disk is full")
_REMEDIES = {
    **dict.fromkeys(_NO_ROOM, "make room"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "change its mode or owner"),
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.EEXIST), "move away what is in its place"),
    errno.EROFS: "make it writable",
}


def of_the_disk(error: BaseException, path: Path | None = None) -> DiskError | None:
    """The error of a disk as one of ours, about `path` where it names none; None if it is another.

    HDF5, ONNX Runtime and SQLite say in their errors' texts alone that there is no room.
    """
    if isinstance(error, DiskError):
        return error
    number = error.errno if isinstance(error, OSError) else None
    if number is None and any(sign in str(error) for sign in _NO_ROOM_SIGNS):
        number = errno.ENOSPC
    if number not in _REMEDIES:
        return None
    place: object = path or "a file or database of this project"
    named = error.filename if isinstance(error, OSError) else None
    # Not the temporary file beside it; but the folder that cannot be made, or the file read from.
    if named and (path is None or Path(named).parent != path.parent):
        place = named
    return DiskError(
        f"{place} cannot be used ({os.strerror(number)}): {_REMEDIES[number]} and run the same "
        "command again; what is finished is kept"
    )


def one_line(error: BaseException, limit: int = 300) -> str:
    """First line of an error's text, for tables and tags."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
