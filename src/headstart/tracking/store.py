"""Where runs go: the tracking store, its experiment and its artifacts.

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
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import mlflow
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from headstart.common.errors import TrackingError, of_the_disk, one_line
from headstart.common.paths import main_checkout, sqlite_uri, state_folder
from headstart.common.secrets import without_secrets
from headstart.common.terminal import say
from headstart.tracking.run_view import MODEL_VIEW, VIEW_TAG, view_path

DEFAULT_EXPERIMENT = "headstart"
# By this tag MLflow's UI tells model training from GenAI; without it, it infers a kind.
_KIND_TAG, _KIND = "mlflow.experimentKind", "custom_model_development"
_OF_THIS_MACHINE = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EISDIR,
    errno.ENOTDIR, errno.ENAMETOOLONG, errno.EMFILE,
}  # fmt: skip
# Where MLflow's tables record the absolute location of artifacts.
_LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)


@dataclass(frozen=True)
class TrackingStore:
    """A reachable tracking store and the experiment that new runs go to."""

    uri: str
    client: MlflowClient
    experiment_id: str
    experiment_name: str

    def find_run(
        self,
        run_id: str,
        rule: str = "a run must be in the tracking store",
        remedy: str = "look it up in `mlflow ui`, or set MLFLOW_TRACKING_URI",
    ) -> Run:
        """Return a run, deleted or not.

        Raises:
            TrackingError: the store has no such run, which breaks `rule`; or it does not answer.
        """
        try:
            with answering(self.uri):
                return self.client.get_run(run_id)
        except MlflowException as error:
            raise TrackingError(
                f"{rule}, but {without_secrets(self.uri)} has no run {run_id} "
                f"({without_secrets(one_line(error, 120))}): {remedy}"
            ) from None

    def artifact(self, run_id: str, name: str, folder: Path) -> Path | None:
        """Download an artifact of a run into `folder`; return None if it cannot be had."""
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return Path(self.client.download_artifacts(run_id, name, str(folder)))
        except (MlflowException, OSError):
            return None


def tracking_uri(root: Path) -> str:
    """Return MLFLOW_TRACKING_URI if set, else the address of the main checkout's mlflow.db."""
    chosen = os.environ.get("MLFLOW_TRACKING_URI")
    return chosen or sqlite_uri(main_checkout(root) / "mlflow.db")


def own_database(root: Path) -> Path | None:
    """Return the path of this project's mlflow.db if that is the tracking store, else None.

    It is by default, and where `mlflow run` exports its address. The file need not exist.
    """
    database = main_checkout(root) / "mlflow.db"
    named = re.fullmatch(r"sqlite(?:\+pysqlite)?:///([^?]*)", tracking_uri(root))
    is_own = named is not None and Path(unquote(named.group(1))).resolve() == database
    return database if is_own else None


def open_store(root: Path) -> TrackingStore:
    """Connect to the tracking store, and create what is missing.

    Raises:
        TrackingError: the store cannot be opened or does not answer, or its experiment cannot be
            used; with its address, without credentials.
    """
    prepare_mlflow()
    uri, database, state = tracking_uri(root), own_database(root), state_folder(root)
    address = without_secrets(uri)
    chosen_id = os.environ.get("MLFLOW_EXPERIMENT_ID")
    chosen_name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    try:
        state.mkdir(parents=True, exist_ok=True)
        # Two processes that first touch an empty SQLite database would both create its tables.
        with answering(uri), FileLock(state / "mlflow.lock", timeout=120):
            location = None
            if database is not None:
                artifacts = database.with_name("mlruns")
                location = artifacts.as_uri()
                if database.is_file():
                    _repair_artifact_locations(database, artifacts)
            # Not mlflow.set_tracking_uri: it writes the environment variable that we honour.
            client = MlflowClient(uri, os.environ.get("MLFLOW_REGISTRY_URI") or uri)
            name = chosen_name or DEFAULT_EXPERIMENT
            experiment: Any
            try:
                if chosen_id and not chosen_name:
                    experiment = client.get_experiment(chosen_id)
                else:
                    experiment = client.get_experiment_by_name(name)
                    if experiment is None:
                        created = client.create_experiment(name, location)
                        experiment = client.get_experiment(created)
            except MlflowException as error:
                if is_away(error) or not (chosen_id or chosen_name):
                    raise
                variable = "MLFLOW_EXPERIMENT_NAME" if chosen_name else "MLFLOW_EXPERIMENT_ID"
                what = "a name that the store takes" if chosen_name else "the id of an experiment"
                raise TrackingError(
                    f"{variable} must be {what} of {address}, but got "
                    f"{chosen_name or chosen_id!r} ({without_secrets(one_line(error, 120))}): "
                    f"correct it, or unset it to use the experiment {DEFAULT_EXPERIMENT!r}"
                ) from None
            if database is not None:
                # Under a plain umask MLflow makes predictions, models and code that is not
                # committed readable for everybody. They are for their owner, and for a group that
                # may write them.
                artifacts.mkdir(exist_ok=True)
                for path in (database, artifacts, state):
                    mode = path.stat().st_mode & 0o777
                    if mode & 0o007:
                        # Somebody else's are left as they are.
                        with contextlib.suppress(PermissionError):
                            path.chmod(mode & (0o770 if mode & 0o020 else 0o700))
    # What a malformed address and a missing driver raise.
    except (MlflowException, OSError, ValueError, ImportError, SQLAlchemyError) as error:
        raise TrackingError(
            "MLFLOW_TRACKING_URI must be an address that MLflow can open (by default this "
            f"project's mlflow.db), but {address} cannot be opened: "
            f"{without_secrets(one_line(error))}: correct the variable, or unset it"
        ) from None
    if chosen_id and experiment.experiment_id != chosen_id.strip():
        raise TrackingError(
            f"MLFLOW_EXPERIMENT_ID and MLFLOW_EXPERIMENT_NAME must name one experiment, but "
            f"{chosen_name!r} is {experiment.experiment_id}, not {chosen_id}: unset one of them"
        )
    if experiment.lifecycle_stage == "deleted":
        raise TrackingError(
            f"runs need an active experiment, but {experiment.name!r} is deleted: restore it with "
            f"`mlflow experiments restore --experiment-id {experiment.experiment_id}`, or choose "
            "another by MLFLOW_EXPERIMENT_NAME or MLFLOW_EXPERIMENT_ID"
        )
    kind = experiment.tags.get(_KIND_TAG, "")
    tags = {VIEW_TAG: MODEL_VIEW} if VIEW_TAG not in experiment.tags else {}
    if kind in ("", "no_inferred_type") or kind.endswith("_inferred"):
        tags[_KIND_TAG] = _KIND
    for tag, value in tags.items():
        # Who may not change an experiment may still log to it.
        with contextlib.suppress(MlflowException):
            client.set_experiment_tag(experiment.experiment_id, tag, value)
    return TrackingStore(uri, client, experiment.experiment_id, experiment.name)


def run_table_address(root: Path) -> str:
    """Return where MLflow shows the models, the best first: behind `mlflow ui` or its server.

    Raises:
        TrackingError: as of `open_store`.
    """
    store = open_store(root)
    is_server = store.uri.startswith(("http://", "https://"))
    server = store.uri.rstrip("/") if is_server else "http://127.0.0.1:5000"
    return f"{server}{view_path(store.experiment_id)}"


def prepare_mlflow() -> None:
    """Set what MLflow reads from the environment to patience and silence that suit a command."""
    # MLflow's default is seven retries with exponential waits: two minutes until a stage learns
    # that the server is away.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    # It prints the address of every run that ends, one a trial, with the password if it has one.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # It logs every table it creates, and every error of the database that it also raises.
    database_log = logging.getLogger("mlflow.store.db.utils")
    database_log.setLevel(logging.WARNING)
    if not database_log.filters:
        database_log.addFilter(lambda record: record.levelno < logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _repair_artifact_locations(database: Path, artifacts: Path) -> None:
    """Make `database` name `artifacts`, the folder beside it, after a checkout was moved or copied.

    MLflow records the location of every experiment, run and model as an absolute address: the
    models of a moved database could not be loaded, and new runs of its experiments would be written
    to the former folder. MLflow's own `Default` experiment moreover records a plain path, which it
    later reads as an address: with `%`, `?` or `#` in it that is another folder.

    A folder is replaced if something that the database says to be in it lies below `artifacts`, or
    if the checkout it belonged to is gone; artifacts that are kept elsewhere stay as they are.

    Raises:
        TrackingError: the file is no database of MLflow.
    """
    home = artifacts.as_uri()
    replaced: set[Path] = set()
    try:
        with (
            contextlib.closing(sqlite3.connect(database, timeout=60)) as connection,
            connection,
        ):
            query = "SELECT DISTINCT artifact_location FROM experiments"
            recorded = [location or "" for (location,) in connection.execute(query).fetchall()]
            matches = [re.fullmatch(r"(.*/mlruns)(?:/\d+)?", location) for location in recorded]
            for former in {match.group(1) for match in matches if match} - {home}:
                is_address = former.startswith("file:")
                folder = Path(url2pathname(urlsplit(former).path) if is_address else former)
                if folder == artifacts:
                    is_stale = re.search("[%?#]", former) is not None
                else:
                    below = connection.execute(
                        "SELECT artifact_uri FROM runs UNION "
                        "SELECT artifact_location FROM logged_models"
                    )
                    is_stale = not folder.parent.exists() or any(
                        (artifacts / location.removeprefix(f"{former}/")).exists()
                        for (location,) in below
                        if location and location.startswith(f"{former}/")
                    )
                if is_stale:
                    for table, column in _LOCATIONS:
                        connection.execute(
                            f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                            f"WHERE substr({column}, 1, ?) = ?",
                            (home, len(former) + 1, len(former) + 1, f"{former}/"),
                        )
                    connection.execute(
                        "UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?",
                        (home, former),
                    )
                    replaced.add(folder)
    except sqlite3.Error as error:
        # An empty database, or one of another MLflow, which says so itself.
        if "no such" in str(error):
            return
        unreadable = TrackingError(
            f"{database} must be a database of MLflow that can be read, but {error}: restore it, "
            "or move it away to begin with an empty one"
        )
        raise of_the_disk(error, database) or unreadable from None
    for folder in sorted(replaced - {artifacts}):
        say(
            f"tracking: artifacts recorded in {folder} are in {artifacts}: {database.name} now "
            "says so",
            error=True,
        )


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
        raise TrackingError(
            f"the tracking store must answer, but {without_secrets(uri)} did not: "
            f"{without_secrets(one_line(error))}: start the server, correct MLFLOW_TRACKING_URI, "
            "or unset it to use this project's mlflow.db"
        ) from None


def is_away(error: BaseException) -> bool:
    """Return whether a store or its artifacts did not answer, as against: they answered no."""
    if isinstance(error, MlflowException):
        text = str(error)
        no_answer = "API request to" in text or "OperationalError" in text
        return no_answer or error.error_code == "TEMPORARILY_UNAVAILABLE"
    if isinstance(error, OSError):
        # A file or a disk of this machine; requests' errors are OSErrors without a number.
        return error.errno not in _OF_THIS_MACHINE
    # What artifact stores raise when they cannot be reached.
    return type(error).__module__.startswith(("botocore", "boto3", "urllib3", "sqlalchemy"))
