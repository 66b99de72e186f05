"""The MLflow run of a trained model: opened by train, resumed by package, evaluate and register.

A tracking store that goes away in the middle costs nothing but time: what cannot be sent is kept as
an offline run, and `headstart sync` sends it.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import mlflow.entities

from headstart.common import files
from headstart.common.errors import TrackingError, one_line
from headstart.common.paths import Project
from headstart.common.secrets import without_secrets
from headstart.common.terminal import say
from headstart.tracking.dvc_dataset import DvcDatasetSource
from headstart.tracking.lineage import DvcOutput, Lineage, gather_lineage
from headstart.tracking.offline_runs import (
    MODEL_TAG,
    OfflineRun,
    Operation,
    offline_folder,
    send_operation,
)
from headstart.tracking.store import TrackingStore, is_away, open_store

# MLflow's own limits on the lengths of a tag and of a dataset's digest.
_MAX_TAG, _MAX_DIGEST = 5000, 36
# Behind every final figure in the alphabet, by which MLflow's choices of metrics are sorted.
HEAD_CURVE = "while_training"
FINE_TUNING_CURVE = "while_fine_tuning"
# DVC's path of what train and evaluate read of the images.
FEATURES = "data/features.h5"


def curve_names(epoch: Mapping[str, float], curve: str = HEAD_CURVE) -> dict[str, float]:
    """Return the metrics of an epoch under the names of a curve, `while_training/val_accuracy`.

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


@dataclass
class Run:
    """A run that is being written. Sends at once, and keeps what cannot be sent.

    Attributes:
        root: the workspace, beside whose state the offline run lies.
        about: how its description begins.
    """

    root: Path
    store: TrackingStore
    run_id: str
    is_away: bool = False
    about: str = ""

    @property
    def offline(self) -> OfflineRun:
        """Where this run keeps what cannot be sent."""
        folder = offline_folder(self.root) / self.run_id
        return OfflineRun(folder, without_secrets(self.store.uri), self.run_id)

    def log_params(self, params: Mapping[str, str]) -> None:
        """Log params, once: those the run already has stay as they are."""
        self._send(Operation("params", {k: without_secrets(v) for k, v in params.items()}))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        clean = _clean(tags)
        self._send(Operation("tags", clean))

    def describe(self, text: str) -> None:
        """Set the description that MLflow's pages show first, in Markdown."""
        self.set_tags({"mlflow.note.content": "\n\n".join(filter(None, (self.about, text)))})

    def log_epochs(
        self,
        epochs: Sequence[Mapping[str, float]],
        *,
        curve: str = HEAD_CURVE,
        first_epoch: int = 1,
    ) -> None:
        """Log the metrics of consecutive epochs, as `<curve>/<name>`; an epoch is a step."""
        now_ms = int(time.time() * 1000)
        rows = [
            [key, float(value), now_ms, step]
            for step, metrics in enumerate(epochs, start=first_epoch)
            for key, value in curve_names(metrics, curve).items()
        ]
        self._send(Operation("metrics", rows))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Log a file or a folder as an artifact, under `folder` of the run's root."""
        self._send(Operation("artifact", path=str(path), folder=folder))

    def log_results(
        self,
        metrics: Mapping[str, float],
        text: str,
        reports: Sequence[Path],
        *,
        curve: Sequence[Mapping[str, float]] = (),
    ) -> None:
        """Log what came of a stage: final figures, a curve, the description and the reports.

        Args:
            metrics: final figures: one value each, at step 0, under names that no curve has.
            reports: files, and folders that become artifacts under their own names; those that
                exist.
        """
        # The curve comes second: MLflow's comparison opens with the metric that was logged first.
        now_ms = int(time.time() * 1000)
        rows = [[name, float(value), now_ms, 0] for name, value in metrics.items()]
        self._send(Operation("metrics", rows))
        if curve:
            self.log_epochs(curve)
        self.describe(text)
        for path in reports:
            if path.exists():
                self.log_artifact(path, path.name if path.is_dir() else None)

    def log_images(self, key: str, images: Sequence[bytes]) -> None:
        """Log encoded images under one name, each a step; MLflow's image grid compares runs by it.

        Those that the run has already stay as they are.
        """
        # From step 0, which the grid shows first.
        for step, data in enumerate(images):
            scratch = offline_folder(self.root) / f".{self.run_id}" / f"{step}.png"
            files.write_bytes(scratch, data)
            self._send(Operation("image", {"key": key, "step": step}, str(scratch)))
            scratch.unlink()
            scratch.parent.rmdir()

    def log_text(self, text: str, name: str, folder: str | None = None) -> None:
        """Log a text as an artifact, without secrets."""
        scratch = offline_folder(self.root) / f".{self.run_id}" / name
        # A diff may hold bytes of any encoding.
        files.write_bytes(scratch, without_secrets(text).encode(errors="surrogateescape"))
        self.log_artifact(scratch, folder)
        scratch.unlink()
        scratch.parent.rmdir()

    def log_inputs(self, inputs: Sequence[tuple[DvcOutput, str]], lineage: Lineage) -> None:
        """Log DVC's outputs as dataset inputs, each with its context (training, validation, test).

        MLflow keeps one context per dataset and run, so names have it where it is not training.
        """
        values = []
        for output, context in inputs:
            path = without_secrets(output.path)
            source = DvcDatasetSource(path, lineage.git.commit, output.md5)
            values.append(
                {
                    "name": path if context == "training" else f"{path} ({context})",
                    "digest": output.md5[:_MAX_DIGEST],
                    "source_type": source.TYPE,
                    "source": json.dumps(source.to_dict()),
                    "context": context,
                }
            )
        self._send(Operation("inputs", values))

    def log_model(self, package: Path, name: str = "model") -> None:
        """Log a saved pyfunc folder as the run's logged model, carrying the run's lineage."""
        # MLmodel holds the time of saving and an id of its own.
        contents = {
            path.relative_to(package).as_posix(): files.sha256_of_file(path)
            for path in package.rglob("*")
            if path.is_file() and path.name != "MLmodel"
        }
        values = {"name": name, "sha256": files.sha256_of_json(contents)}
        self._send(Operation("model", values, str(package)))

    def end(self, status: str = "FINISHED") -> None:
        self._send(Operation("status", status))

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the run: FINISHED, or FAILED or KILLED with the error as a tag."""
        if error is None:
            self.end()
            return
        with contextlib.suppress(Exception):
            text, name = one_line(error, _MAX_TAG), type(error).__name__
            self.set_tags({"error": text, "error.type": name})
            self.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")

    def _send(self, operation: Operation) -> None:
        if not self.is_away:
            try:
                send_operation(self.store.client, self.run_id, operation)
                return
            except Exception as error:
                if not is_away(error):
                    raise
                self.is_away = True
                say(
                    f"warning: the tracking store {without_secrets(self.store.uri)} went away "
                    f"({without_secrets(one_line(error, 120))}); what this run logs is kept in "
                    f"{self.offline.folder}; `headstart sync` sends it when the store is back",
                    error=True,
                )
        self.offline.keep(operation)


def _clean(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags as they may leave: without credentials, as long as a store takes them."""
    return {key: without_secrets(value)[:_MAX_TAG] for key, value in tags.items()}


def new_run(project: Project, name: str, tags: Mapping[str, str]) -> Run:
    """Create a run in the experiment of the tracking store.

    Raises:
        TrackingError: the store does not answer.
    """
    store = open_store(project.root)
    created = store.client.create_run(store.experiment_id, tags=_clean(tags), run_name=name)
    return Run(project.root, store, created.info.run_id)


@contextlib.contextmanager
def recorded_run(project: Project, stage: str, *, reads: str | None = None) -> Iterator[Run]:
    """Resume the run that models/run.json names, for what `stage` logs: never params.

    Args:
        reads: the split (a context of MLflow's dataset inputs) whose features the stage reads. The
            lineage of a stage that reads any is logged; the model's stays as train wrote it.

    Raises:
        TrackingError: the store does not have the run, with the remedy.
    """
    run_id = read_run_id(project.run)
    lineage = gather_lineage(project, stage, {}) if reads else None
    run = Run(project.root, open_store(project.root), run_id)
    # If the store went away while this run was written, everything else joins the offline run.
    run.is_away = any(offline_folder(project.root).glob(f"{run_id}*"))
    former = [] if run.is_away else find_recorded_run(run.store, run_id).data.tags
    with run:
        run.set_tags({f"dvc.stage.{stage}": "done"})
        if lineage and reads:
            names = ("git.commit", "git.dirty")
            run.set_tags({f"{stage}.{name}": lineage.tags[name] for name in names})
            run.log_inputs([(o, reads) for o in lineage.inputs if o.path == FEATURES], lineage)
        yield run
    if not run.is_away:
        for tag in ("error", "error.type"):
            if tag in former:
                run.store.client.delete_tag(run_id, tag)


def find_recorded_run(store: TrackingStore, run_id: str) -> mlflow.entities.Run:
    """Return the run that models/run.json names.

    Raises:
        TrackingError: the store does not have it, or it is deleted, with the remedy.
    """
    again = "make it again with `dvc repro --force --single-item train && dvc repro`"
    run = store.find_run(
        run_id,
        "the recorded run must be in the tracking store",
        f"{again}, or set MLFLOW_TRACKING_URI to the store that has it",
    )
    if run.info.lifecycle_stage == "deleted":
        raise TrackingError(
            f"the recorded run must be active, but {run_id} is deleted: restore it with "
            f"`mlflow runs restore --run-id {run_id}`, or {again}"
        )
    return run


def read_run_id(path: Path) -> str:
    """Return the run that models/run.json names.

    Raises:
        TrackingError: the file is missing, or not as train writes it.
    """
    if not path.is_file():
        raise TrackingError(
            f"the run of the model must be recorded, but {path} is missing: run `dvc repro train`"
        )
    try:
        return str(files.read_json(path)["run_id"])
    except (ValueError, TypeError, KeyError):
        raise TrackingError(
            f"{path} must name the run of the model, but it is not as train writes it: restore it "
            "with `dvc checkout --force models/run.json`, or run `dvc repro --force train`"
        ) from None


def given_run(project: Project) -> Run | None:
    """Return the run that MLFLOW_RUN_ID names, as `mlflow run` sets it; None if it is not set.

    Raises:
        TrackingError: it names no active run.
    """
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return None
    store = open_store(project.root)
    rule = "MLFLOW_RUN_ID must name an active run of the tracking store"
    remedy = "unset MLFLOW_RUN_ID, and the training opens a run of its own"
    if store.find_run(run_id, rule, remedy).info.lifecycle_stage == "deleted":
        raise TrackingError(f"{rule}, but {run_id} is deleted: {remedy}")
    return Run(project.root, store, run_id)


def open_given_run(project: Project) -> Run | None:
    """As `given_run`, for what no later run may be told from: it must still be open.

    Raises:
        TrackingError: it names no active run, or one that has ended.
    """
    run = given_run(project)
    if run is not None:
        status = run.store.find_run(run.run_id).info.status
        if status != "RUNNING":
            raise TrackingError(
                f"MLFLOW_RUN_ID must name a run that is open, but {run.run_id} is {status}: unset "
                "MLFLOW_RUN_ID, so that nothing is written into a run that has ended"
            )
    return run


def is_trained_run(run: Run) -> bool:
    """Return whether a model is logged in the run."""
    return MODEL_TAG in run.store.find_run(run.run_id).data.tags
