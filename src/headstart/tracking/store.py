"""Where runs go: the tracking store, the experiment, and whether they can be reached.

Whatever MLflow's own environment variables say stands. With none set, runs go to the main
checkout's `mlflow.db`, found also from queued and temporary experiments and from git worktrees.
"""

import contextlib
import errno
import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import mlflow
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from headstart.common.errors import TrackingError, of_the_disk, one_line
from headstart.common.paths import main_checkout, state_folder
from headstart.common.secrets import without_secrets
from headstart.common.terminal import say
from headstart.tracking.artifact_locations import repair_artifact_locations

DEFAULT_EXPERIMENT = "headstart"
# By this tag MLflow's UI tells model training from GenAI; without it, it infers a kind.
_KIND_TAG, _KIND = "mlflow.experimentKind", "custom_model_development"
_OF_THIS_MACHINE = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EISDIR,
    errno.ENOTDIR, errno.ENAMETOOLONG, errno.EMFILE,
}  # fmt: skip


@dataclass(frozen=True)
class TrackingStore:
    """A reachable tracking store and the experiment that new runs go to."""

    uri: str
    client: MlflowClient
    experiment_id: str
    experiment_name: str


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI if set, else the SQLite file of the main checkout."""
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(_own_database(root))


def sqlite_uri(path: Path) -> str:
    """The URI of a SQLite database, whatever characters its absolute path has."""
    # SQLAlchemy unquotes the path, and takes what follows a question mark as a query.
    quoted = str(path).replace("%", "%25").replace("?", "%3F")
    # For `sqlite:///` MLflow makes a folder of the quoted name, beside the one that is meant.
    return f"sqlite:///{path}" if quoted == str(path) else f"sqlite+pysqlite:///{quoted}"


def store_exists(root: Path) -> bool:
    """Whether there is a store to ask, or a database of this project that asking would create."""
    return not _is_own_database(root, tracking_uri(root)) or _own_database(root).is_file()


def open_store(root: Path) -> TrackingStore:
    """Connect, and create what is missing: once, though many processes may ask.

    Raises:
        TrackingError: if the store cannot be reached, with its address (without credentials).
    """
    prepare_mlflow()
    uri = tracking_uri(root)
    try:
        # Two processes that first touch an empty SQLite database would both create its tables.
        with _creation_lock(root):
            if _is_own_database(root, uri):
                _repair_own_database(_own_database(root))
            # Not mlflow.set_tracking_uri: it writes the environment variable that we honour.
            client = MlflowClient(uri, os.environ.get("MLFLOW_REGISTRY_URI") or uri)
            experiment = _experiment(client, root, uri)
            if _is_own_database(root, uri):
                _close_to_others(root)
    # What a malformed address and a missing driver raise, beside a store that does not answer.
    except (MlflowException, OSError, ValueError, ImportError, SQLAlchemyError) as error:
        if is_away(error):
            raise unreachable(uri, error) from None
        raise TrackingError(
            "MLFLOW_TRACKING_URI must be an address that MLflow can open (by default this "
            f"project's mlflow.db), but {without_secrets(uri)} cannot be opened: "
            f"{without_secrets(one_line(error))}: correct the variable, or unset it"
        ) from None
    return TrackingStore(uri, client, experiment.experiment_id, experiment.name)


@contextlib.contextmanager
def global_store(uri: str) -> Iterator[None]:
    """Make `uri` MLflow's global tracking store for a while: some of its calls know no other."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        # Setting it writes the environment variable that we honour.
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def unreachable(uri: str, error: BaseException) -> TrackingError:
    """The error for a store that does not answer."""
    return TrackingError(
        f"the tracking store must answer, but {without_secrets(uri)} did not: "
        f"{without_secrets(one_line(error))}: start the server, correct MLFLOW_TRACKING_URI, or "
        "unset it to use this project's mlflow.db"
    )


@contextlib.contextmanager
def answering(uri: str) -> Iterator[None]:
    """Name the store where it goes away inside; whatever else goes wrong passes as it is.

    Raises:
        TrackingError: the store did not answer.
    """
    try:
        yield
    except Exception as error:
        if not is_away(error):
            raise
        raise unreachable(uri, error) from None


def is_away(error: BaseException) -> bool:
    """Whether a store or its artifacts did not answer, as against: they answered no."""
    if isinstance(error, MlflowException):
        text = str(error)
        no_answer = "API request to" in text or "OperationalError" in text
        return no_answer or error.error_code == "TEMPORARILY_UNAVAILABLE"
    if isinstance(error, OSError):
        # A file or a disk of this machine; requests' errors are OSErrors without a number.
        return error.errno not in _OF_THIS_MACHINE
    # What artifact stores raise when they cannot be reached.
    return type(error).__module__.startswith(("botocore", "boto3", "urllib3", "sqlalchemy"))


def prepare_mlflow() -> None:
    """Set what MLflow reads from the environment to patience and silence that suit a command."""
    # MLflow's default is seven retries with exponential waits: two minutes until a stage learns
    # that the server is away.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    # It prints the address of every run that ends, one a trial, with the password if it has one.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # It tells of every table it creates, and prints every error of the database that it raises.
    database_log = logging.getLogger("mlflow.store.db.utils")
    database_log.setLevel(logging.WARNING)
    database_log.addFilter(_is_no_error)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _is_no_error(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR


def _creation_lock(root: Path) -> FileLock:
    folder = state_folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / "mlflow.lock", timeout=120)


def _experiment(client: MlflowClient, root: Path, uri: str) -> Any:
    """The experiment that the environment names, else this project's; made when it is not there."""
    chosen_id = os.environ.get("MLFLOW_EXPERIMENT_ID")
    chosen_name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    name = chosen_name or DEFAULT_EXPERIMENT
    found: Any
    try:
        if chosen_id and not chosen_name:
            found = client.get_experiment(chosen_id)
        else:
            found = client.get_experiment_by_name(name)
            if found is None:
                made = client.create_experiment(name, _artifact_location(root, uri))
                found = client.get_experiment(made)
    except MlflowException as error:
        if is_away(error) or not (chosen_id or chosen_name):
            raise
        variable = "MLFLOW_EXPERIMENT_NAME" if chosen_name else "MLFLOW_EXPERIMENT_ID"
        what = "a name that the store takes" if chosen_name else "the id of an experiment"
        raise TrackingError(
            f"{variable} must be {what} of {without_secrets(uri)}, but got "
            f"{chosen_name or chosen_id!r} ({without_secrets(one_line(error, 120))}): correct it, "
            f"or unset it to use the experiment {DEFAULT_EXPERIMENT!r}"
        ) from None
    if chosen_id and found.experiment_id != chosen_id.strip():
        raise TrackingError(
            f"MLFLOW_EXPERIMENT_ID and MLFLOW_EXPERIMENT_NAME must name one experiment, but "
            f"{chosen_name!r} is {found.experiment_id}, not {chosen_id}: unset one of them"
        )
    if found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"runs need an active experiment, but {found.name!r} is deleted: restore it with "
            f"`mlflow experiments restore --experiment-id {found.experiment_id}`, or choose "
            "another by MLFLOW_EXPERIMENT_NAME or MLFLOW_EXPERIMENT_ID"
        )
    kind = found.tags.get(_KIND_TAG, "")
    if kind in ("", "no_inferred_type") or kind.endswith("_inferred"):
        # Who may not change an experiment may still log to it.
        with contextlib.suppress(MlflowException):
            client.set_experiment_tag(found.experiment_id, _KIND_TAG, _KIND)
    return found


def _artifact_location(root: Path, uri: str) -> str | None:
    """For this project's own database the folder beside it; else what the store decides."""
    if not _is_own_database(root, uri):
        return None
    return _own_artifacts(_own_database(root)).as_uri()


def _own_database(root: Path) -> Path:
    return main_checkout(root) / "mlflow.db"


def _own_artifacts(database: Path) -> Path:
    return database.with_name("mlruns")


def _is_own_database(root: Path, uri: str) -> bool:
    """Whether `uri` means this project's mlflow.db: in our words, or as `mlflow run` exports it."""
    path = re.fullmatch(r"sqlite(?:\+pysqlite)?:///([^?]*)", uri)
    return path is not None and Path(unquote(path.group(1))).resolve() == _own_database(root)


def _repair_own_database(database: Path) -> None:
    if not database.is_file():
        return
    artifacts = _own_artifacts(database)
    try:
        replaced = repair_artifact_locations(database, artifacts)
    except sqlite3.Error as error:
        # An empty database, or one of another MLflow: it says so itself.
        if "no such" in str(error):
            return
        unreadable = TrackingError(
            f"{database} must be a database of MLflow that can be read, but {error}: restore it, "
            "or move it away to begin with an empty one"
        )
        raise of_the_disk(error, database) or unreadable from None
    for former in replaced:
        say(
            f"tracking: artifacts recorded in {former} are in {artifacts}: {database.name} now "
            "says so",
            error=True,
        )


def _close_to_others(root: Path) -> None:
    """Leave database, artifacts and state to their owner, and to a group that may write them.

    Under a plain umask MLflow makes them readable for everybody: predictions, models, and code
    that is not committed.
    """
    database = _own_database(root)
    artifacts = _own_artifacts(database)
    artifacts.mkdir(exist_ok=True)
    for path in (database, artifacts, state_folder(root)):
        mode = path.stat().st_mode & 0o777
        if mode & 0o007:
            # Somebody else's are left as they are.
            with contextlib.suppress(PermissionError):
                path.chmod(mode & (0o770 if mode & 0o020 else 0o700))
