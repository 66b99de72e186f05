"""Where runs go: the tracking store, the experiment, and whether they can be reached.

Whatever MLflow's own environment variables say stands. With none set, runs go to the main
checkout's `mlflow.db`, found also from queued and temporary experiments and from git worktrees.
"""

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from headstart.errors import TrackingError, one_line
from headstart.paths import main_checkout, state_folder
from headstart.secrets import without_secrets

DEFAULT_EXPERIMENT = "headstart"
# MLflow's UI opens an experiment without this tag, or with one that it inferred, as GenAI.
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
    return os.environ.get("MLFLOW_TRACKING_URI") or _own_database(root)


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
            # Not mlflow.set_tracking_uri: it writes the environment variable that we honour.
            client = MlflowClient(uri, os.environ.get("MLFLOW_REGISTRY_URI") or uri)
            experiment = _experiment(client, root, uri)
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
    # It tells of every table it creates.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)


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
    """For this project's own database an absolute folder; else what the store decides."""
    return (main_checkout(root) / "mlruns").as_uri() if uri == _own_database(root) else None


def _own_database(root: Path) -> str:
    return f"sqlite:///{main_checkout(root)}/mlflow.db"
