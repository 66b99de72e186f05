"""What nobody notices while nothing runs: a model here whose run the tracking store lacks."""

from dataclasses import dataclass

from headstart.common import files
from headstart.common.errors import TrackingError
from headstart.common.paths import Project, cache_folder
from headstart.common.secrets import without_secrets
from headstart.tracking.offline_runs import offline_folder
from headstart.tracking.runs import find_recorded_run, read_run_id
from headstart.tracking.store import open_store, tracking_uri


@dataclass(frozen=True)
class HealthCheck:
    """One thing that was looked at, and the remedy if it is not well."""

    is_well: bool
    sentence: str

    def __str__(self) -> str:
        return f"{'well ' if self.is_well else 'WRONG'}  {self.sentence}"


def examine(project: Project) -> list[HealthCheck]:
    """Check the recorded run, the metrics, offline runs and the cache."""
    checks, run_id = [], ""
    if not project.run.is_file():
        checks.append(HealthCheck(False, "there is no models/run.json yet: run `dvc repro`"))
    else:
        try:
            run_id = read_run_id(project.run)
            find_recorded_run(open_store(project.root), run_id)
        except TrackingError as error:
            serves = "`mlflow models serve -m models/serving` works without it"
            checks.append(HealthCheck(False, f"{error}; {serves}"))
        else:
            address = without_secrets(tracking_uri(project.root))
            checks.append(HealthCheck(True, f"run {run_id} of the model here is in {address}"))
    if not (run_id and project.metrics.is_file()):
        checks.append(HealthCheck(True, "there are no metrics to compare with the run yet"))
    else:
        try:
            theirs = str(files.read_json(project.metrics)["run_id"])
        except (ValueError, TypeError, KeyError):
            wrong = "reports/metrics.json must name its run, but it is not as evaluate writes it"
            checks.append(HealthCheck(False, f"{wrong}: run `dvc repro --force evaluate`"))
        else:
            wrong = f"reports/metrics.json is of run {theirs}, not {run_id}: run `dvc repro`"
            right = "reports/metrics.json is of that run"
            checks.append(HealthCheck(theirs == run_id, right if theirs == run_id else wrong))
    n_offline = len(list(offline_folder(project.root).glob("*/run.json")))
    if n_offline:
        waiting = f"{n_offline} offline runs are not sent yet: run `headstart sync`"
        checks.append(HealthCheck(False, waiting))
    else:
        checks.append(HealthCheck(True, "there is no offline run"))
    checks.append(HealthCheck(True, f"features are cached in {cache_folder()}"))
    return checks
