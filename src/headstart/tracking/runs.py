"""One MLflow run a trained model: opened by train, gone on with by evaluate and register.

A tracking store that goes away in the middle costs nothing but time: what could not be sent is
kept on disk, and `headstart sync` sends it.
"""

import contextlib
import getpass
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException

from headstart.common import files
from headstart.common.errors import TrackingError, one_line
from headstart.common.paths import Project, state_folder
from headstart.common.secrets import without_secrets
from headstart.common.terminal import say
from headstart.tracking import outbox as sending
from headstart.tracking.datasets import dataset_values
from headstart.tracking.dvc_state import Output
from headstart.tracking.lineage import Lineage
from headstart.tracking.outbox import MODEL_TAG, Operation, Outbox
from headstart.tracking.store import TrackingStore, answering, is_away, open_store

_MAX_TAG = 5000
# Behind every final figure in the alphabet, by which MLflow's choices of metrics are sorted.
HEAD_CURVE = "while_training"
FINE_TUNING_CURVE = "while_fine_tuning"


def curve_names(epoch: Mapping[str, float], curve: str = HEAD_CURVE) -> dict[str, float]:
    """Metrics of an epoch under the names of a curve, `while_training/val_accuracy`.

    MLflow's tables, filters and sorting know a metric by its value at the last step. A name with a
    slash is a curve, any other one final figure: a name that was both would show the last epoch of
    one head for the model. MLflow's charts make a section of what stands before the slash.

    Args:
        epoch: `loss` is that of training; the rest are of images not trained on.
    """
    return {
        f"{curve}/{'train_loss' if name == 'loss' else f'val_{name}'}": value
        for name, value in epoch.items()
    }


@dataclass(frozen=True)
class RunRecord:
    """models/run.json: which run the model in the workspace belongs to."""

    run_id: str
    experiment_name: str


@dataclass
class Run:
    """A run that is being written. Sends at once; keeps what cannot be sent."""

    store: TrackingStore
    run_id: str
    outbox: Outbox
    is_away: bool = field(default=False)

    @property
    def record(self) -> RunRecord:
        return RunRecord(self.run_id, self.store.experiment_name)

    def log_params(self, params: Mapping[str, str]) -> None:
        """Params, once: those the run already has stay as they are."""
        self._send(Operation("params", {k: without_secrets(v) for k, v in params.items()}))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        clean = {key: without_secrets(value)[:_MAX_TAG] for key, value in tags.items()}
        self._send(Operation("tags", clean))

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Final figures: one value each, at step 0, under names that no curve has."""
        now_ms = int(time.time() * 1000)
        rows = [[key, float(value), now_ms, 0] for key, value in metrics.items()]
        self._send(Operation("metrics", rows))

    def log_epochs(
        self,
        epochs: Sequence[Mapping[str, float]],
        *,
        curve: str = HEAD_CURVE,
        first_epoch: int = 1,
    ) -> None:
        """Metrics of consecutive epochs in one batch, as `<curve>/<name>`; an epoch is a step."""
        now_ms = int(time.time() * 1000)
        rows = [
            [key, float(value), now_ms, step]
            for step, metrics in enumerate(epochs, start=first_epoch)
            for key, value in curve_names(metrics, curve).items()
        ]
        self._send(Operation("metrics", rows))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """A file or a folder as an artifact, under `folder` of the run's root."""
        self._send(Operation("artifact", path=str(path), folder=folder))

    def log_text(self, text: str, name: str, folder: str | None = None) -> None:
        """A text as an artifact, without secrets."""
        scratch = self.outbox.folder.parent / f".{self.run_id}" / name
        # A diff may hold bytes of any encoding.
        files.write_bytes(scratch, without_secrets(text).encode(errors="surrogateescape"))
        self.log_artifact(scratch, folder)
        scratch.unlink()
        scratch.parent.rmdir()

    def log_model(self, folder: Path, name: str) -> None:
        """Log a saved pyfunc folder as the run's logged model, carrying the run's lineage."""
        # MLmodel holds the time of saving and an id of its own.
        contents = {
            path.relative_to(folder).as_posix(): files.sha256_of_file(path)
            for path in folder.rglob("*")
            if path.is_file() and path.name != "MLmodel"
        }
        values = {"name": name, "sha256": files.sha256_of_json(contents)}
        self._send(Operation("model", values, str(folder)))

    def log_inputs(self, inputs: Sequence[tuple[Output, str]], lineage: Lineage) -> None:
        """DVC outputs as dataset inputs, each with its context (training, validation, test)."""
        rev = lineage.git.commit
        values = [dataset_values(output, rev, context) for output, context in inputs]
        self._send(Operation("inputs", values))

    def end(self, status: str = "FINISHED") -> None:
        self._send(Operation("status", status))

    def _send(self, operation: Operation) -> None:
        if not self.is_away:
            with self._keeping_on():
                sending.apply(self.store.client, self.run_id, operation)
                return
        self.outbox.keep(operation)

    @contextlib.contextmanager
    def _keeping_on(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not is_away(error):
                raise
            self.is_away = True
            say(
                f"warning: the tracking store {without_secrets(self.store.uri)} went away "
                f"({without_secrets(one_line(error, 120))}); what this run logs is kept in "
                f"{self.outbox.folder}; `headstart sync` sends it when the store is back",
                error=True,
            )


@contextlib.contextmanager
def training_run(
    project: Project, name: str, lineage: Lineage, params: Mapping[str, str] | None = None
) -> Iterator[Run]:
    """Open the run of a trained model with its params: the one `mlflow run` opened, else a new one.

    A failure inside marks the run FAILED with the error as a tag.

    Raises:
        TrackingError: MLFLOW_RUN_ID names a run that this training does not belong in.
    """
    store = open_store(project.root)
    given = os.environ.get("MLFLOW_RUN_ID")
    tags = {"mlflow.runName": name, **lineage.tags}
    if given:
        run_id = given
        _check_given(store, given, params or {})
    else:
        # What `mlflow run` writes on the runs that it opens.
        source = {"mlflow.source.name": "dvc.yaml:train", "mlflow.user": _user()}
        run_id = store.client.create_run(
            store.experiment_id, tags={**source, **tags}, run_name=name
        ).info.run_id
    run = Run(store, run_id, _outbox(project, store, run_id))
    if given:
        run.set_tags(tags)
    with _failing(run):
        run.log_params(params or {})
        yield run


@contextlib.contextmanager
def continued_run(project: Project, lineage_tags: Mapping[str, str]) -> Iterator[Run]:
    """Go on in the run that models/run.json names; metrics and tags only, never params.

    Raises:
        TrackingError: if the database does not have the run, with the remedy.
    """
    record = read_record(project.run)
    store = open_store(project.root)
    outbox = _outbox(project, store, record.run_id)
    # If the store went away while this run was written, everything goes on to the outbox.
    waits = any(outbox.folder.parent.glob(f"{record.run_id}*"))
    run = Run(store, record.run_id, outbox, is_away=waits)
    failed_before = [] if waits else _error_tags(_existing(store, record.run_id))
    with _failing(run):
        run.set_tags(lineage_tags)
        yield run
    if not run.is_away:
        for tag in failed_before:
            store.client.delete_tag(run.run_id, tag)


def log_package(project: Project) -> None:
    """Log models/serving/ as the logged model of the run that models/run.json names."""
    with continued_run(project, {"dvc.stage.package": "done"}) as run:
        run.log_model(project.serving, "model")


def pending_folder(root: Path) -> Path:
    """Where the outboxes of runs lie whose store went away."""
    return state_folder(root) / "pending"


def _outbox(project: Project, store: TrackingStore, run_id: str) -> Outbox:
    folder = pending_folder(project.root) / run_id
    return Outbox(folder, without_secrets(store.uri), run_id)


def _error_tags(run: Any) -> list[str]:
    return [tag for tag in ("error", "error.type") if tag in run.data.tags]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container's user need not have a name.
        return "unknown"


def write_record(path: Path, record: RunRecord) -> None:
    """Write models/run.json."""
    files.write_json(path, {"format": "headstart-run", "format_version": 1, **asdict(record)})


def read_record(path: Path) -> RunRecord:
    """Read models/run.json.

    Raises:
        TrackingError: it is missing, or not as `write_record` writes it.
    """
    if not path.is_file():
        raise TrackingError(
            f"the run of the model must be recorded, but {path} is missing: run `dvc repro train`"
        )
    try:
        content = files.read_json(path)
        return RunRecord(str(content["run_id"]), str(content["experiment_name"]))
    except (ValueError, TypeError, KeyError):
        raise TrackingError(
            f"{path} must name the run of the model, but it is not as train writes it: restore it "
            "with `dvc checkout --force models/run.json`, or run `dvc repro --force train`"
        ) from None


def recorded_run_is_there(project: Project) -> bool:
    """Whether the tracking store has the run that models/run.json names."""
    store = open_store(project.root)
    try:
        _existing(store, read_record(project.run).run_id)
    except TrackingError:
        return False
    return True


def is_trained_run(project: Project, run_id: str) -> bool:
    """Whether train has written a model into the run."""
    store = open_store(project.root)
    return MODEL_TAG in _existing(store, run_id).data.tags


def describe_run(project: Project, run_id: str, kind: str, text: str) -> None:
    """Say what a run that holds no model is about."""
    client = open_store(project.root).client
    client.set_tag(run_id, "headstart.kind", kind)
    client.set_tag(run_id, "mlflow.note.content", text)


def _existing(store: TrackingStore, run_id: str) -> Any:
    try:
        with answering(store.uri):
            run = store.client.get_run(run_id)
    except MlflowException:
        raise TrackingError(
            f"the recorded run must be in the tracking store, but {without_secrets(store.uri)} "
            f"has no run {run_id} (another database, or a new clone): make the run again with "
            "`dvc repro --force --single-item train && dvc repro`, or set MLFLOW_TRACKING_URI to "
            "the store that has it"
        ) from None
    if run.info.lifecycle_stage == "deleted":
        raise TrackingError(
            f"the recorded run must be active, but {run_id} is deleted: restore it with "
            f"`mlflow runs restore --run-id {run_id}`, or make it again with `dvc repro --force "
            "--single-item train && dvc repro`"
        )
    return run


def _check_given(store: TrackingStore, run_id: str, params: Mapping[str, str]) -> None:
    """Refuse what MLFLOW_RUN_ID names unless it is open, or is a run of the same params."""
    remedy = "unset MLFLOW_RUN_ID, and the training opens a run of its own"
    try:
        with answering(store.uri):
            run = store.client.get_run(run_id)
    except MlflowException as error:
        raise TrackingError(
            f"MLFLOW_RUN_ID must name a run of {without_secrets(store.uri)}, but got {run_id!r} "
            f"({one_line(error, 120)}): {remedy}"
        ) from None
    if run.info.lifecycle_stage == "deleted":
        raise TrackingError(
            f"MLFLOW_RUN_ID must name an active run, but {run_id} is deleted: {remedy}"
        )
    if run.info.status == "RUNNING":
        return
    logged = run.data.params
    others = [name for name, value in params.items() if logged.get(name) != without_secrets(value)]
    if others:
        name = others[0]
        raise TrackingError(
            "MLFLOW_RUN_ID must name a run that is open, or one with the params of this training, "
            f"but {run_id} is {run.info.status} and {len(others)} of its params differ ({name} is "
            f"{logged.get(name, 'not logged')}, not {params[name]}): {remedy}"
        )


@contextlib.contextmanager
def _failing(run: Run) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(Exception):
            run.set_tags({"error": one_line(error, _MAX_TAG), "error.type": type(error).__name__})
            run.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    run.end()
