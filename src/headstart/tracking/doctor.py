"""What nobody notices while nothing runs: a model here whose run the tracking store lacks."""

from dataclasses import dataclass

from headstart.common import files
from headstart.common.errors import TrackingError
from headstart.common.paths import Project, cache_folder
from headstart.common.secrets import without_secrets
from headstart.tracking.runs import pending_folder, read_record, recorded_run_is_there
from headstart.tracking.store import tracking_uri


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, and the remedy if it is not well."""

    is_well: bool
    sentence: str

    def __str__(self) -> str:
        return f"{'well ' if self.is_well else 'WRONG'}  {self.sentence}"


def examine(project: Project) -> list[Finding]:
    """Look at the tracking store, the recorded run, outboxes and the feature cache."""
    return [_run(project), _same_run(project), _outboxes(project), _cache()]


def _run(project: Project) -> Finding:
    address = without_secrets(tracking_uri(project.root))
    if not project.run.is_file():
        return Finding(False, "there is no models/run.json yet: run `dvc repro`")
    try:
        run_id = read_record(project.run).run_id
        is_there = recorded_run_is_there(project)
    except TrackingError as error:
        return Finding(False, str(error))
    if is_there:
        return Finding(True, f"run {run_id} of the model here is in {address}")
    return Finding(
        False,
        f"run {run_id} of the model here is not in {address}: make it again with `dvc repro "
        "--force --single-item train && dvc repro`, or set MLFLOW_TRACKING_URI to the store that "
        "has it; `mlflow models serve -m models/serving` works without it",
    )


def _same_run(project: Project) -> Finding:
    if not (project.run.is_file() and project.metrics.is_file()):
        return Finding(True, "there are no metrics to compare with the run yet")
    try:
        ours = read_record(project.run).run_id
        theirs = str(files.read_json(project.metrics)["run_id"])
    except TrackingError as error:
        return Finding(False, str(error))
    except (ValueError, TypeError, KeyError):
        return Finding(
            False,
            "reports/metrics.json must name its run, but it is not as evaluate writes it: run "
            "`dvc repro --force evaluate`",
        )
    if ours == theirs:
        return Finding(True, "reports/metrics.json is of that run")
    return Finding(False, f"reports/metrics.json is of run {theirs}, not {ours}: run `dvc repro`")


def _outboxes(project: Project) -> Finding:
    folder = pending_folder(project.root)
    waiting = len(list(folder.glob("*/run.json"))) if folder.is_dir() else 0
    if waiting:
        return Finding(False, f"{waiting} runs wait to be sent: run `headstart sync`")
    return Finding(True, "no run waits to be sent")


def _cache() -> Finding:
    return Finding(True, f"features are cached in {cache_folder()}")
