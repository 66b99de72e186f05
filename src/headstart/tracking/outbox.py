"""What is to be logged, as data: sent to the tracking store at once, or kept until it is back.

Each operation can be repeated without harm (metrics keep their time stamps, artifacts are
overwritten, a model is logged once a run), so an interrupted upload is simply done again.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric, Param, RunTag
from mlflow.models import Model

from headstart import files

# What MLflow's stores accept in one call.
_METRICS_A_CALL = 1000
_PARAMS_A_CALL = 100
MODEL_TAG = "headstart.model_id"


@dataclass(frozen=True)
class Operation:
    """One thing to log on a run. `values` and `path` depend on `kind`."""

    kind: Literal["params", "tags", "metrics", "artifact", "model", "status"]
    values: Any = None
    path: str | None = None
    folder: str | None = None


def apply(client: MlflowClient, run_id: str, operation: Operation) -> None:
    """Send one operation to the tracking store."""
    match operation.kind:
        case "params":
            _log_params(client, run_id, operation.values)
        case "tags":
            tags = [RunTag(key, value) for key, value in operation.values.items()]
            client.log_batch(run_id, tags=tags)
        case "metrics":
            _log_metrics(client, run_id, operation.values)
        case "artifact":
            _log_artifact(client, run_id, Path(operation.path or ""), operation.folder)
        case "model":
            _log_model(client, run_id, Path(operation.path or ""), operation.values)
        case "status":
            client.set_terminated(run_id, status=operation.values)


def keep(outbox: Path, operation: Operation) -> None:
    """Append an operation to a run's outbox, with a copy of the files it sends."""
    outbox.mkdir(parents=True, exist_ok=True)
    if operation.path is not None:
        # Workspace files are replaced by the next run; the outbox needs its own.
        copy = outbox / f"{sum(1 for _ in outbox.iterdir()):04d}" / Path(operation.path).name
        copy.parent.mkdir()
        if Path(operation.path).is_dir():
            shutil.copytree(operation.path, copy)
        else:
            shutil.copy2(operation.path, copy)
        operation = Operation(operation.kind, operation.values, str(copy), operation.folder)
    with (outbox / "operations.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(asdict(operation)) + "\n")


def kept(outbox: Path) -> Iterator[Operation]:
    """The operations of an outbox in their order; a half-written last line is left out."""
    for line in (outbox / "operations.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            yield Operation(**json.loads(line))
        except json.JSONDecodeError:
            return


def _log_params(client: MlflowClient, run_id: str, values: dict[str, str]) -> None:
    # A param cannot change once it is logged; `mlflow run -P` has logged some before we come.
    known = client.get_run(run_id).data.params
    new = [Param(key, value) for key, value in values.items() if key not in known]
    for start in range(0, len(new), _PARAMS_A_CALL):
        client.log_batch(run_id, params=new[start : start + _PARAMS_A_CALL])


def _log_metrics(client: MlflowClient, run_id: str, rows: list[list[Any]]) -> None:
    metrics = [Metric(key, value, time_ms, step) for key, value, time_ms, step in rows]
    for start in range(0, len(metrics), _METRICS_A_CALL):
        client.log_batch(run_id, metrics=metrics[start : start + _METRICS_A_CALL])


def _log_artifact(client: MlflowClient, run_id: str, path: Path, folder: str | None) -> None:
    if path.is_dir():
        client.log_artifacts(run_id, str(path), folder)
    else:
        client.log_artifact(run_id, str(path), folder)


def _log_model(client: MlflowClient, run_id: str, folder: Path, values: dict[str, Any]) -> None:
    """Log a saved pyfunc folder as the run's model, once."""
    run = client.get_run(run_id)
    if MODEL_TAG in run.data.tags:
        return
    logged = client.create_logged_model(
        run.info.experiment_id,
        name=values["name"],
        source_run_id=run_id,
        tags=values["tags"],
        params=values["params"],
        model_type="image-classifier",
    )
    copy = folder.parent / f".{folder.name}.{logged.model_id}"
    try:
        shutil.copytree(folder, copy)
        mlmodel = Model.load(str(copy))
        mlmodel.run_id, mlmodel.model_id, mlmodel.model_uuid = (run_id, logged.model_id, None)
        mlmodel.artifact_path = logged.artifact_location
        mlmodel.save(str(copy / "MLmodel"))
        client.log_model_artifacts(logged.model_id, str(copy))
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    client.set_tag(run_id, MODEL_TAG, logged.model_id)


def write_descriptor(outbox: Path, uri: str, run_id: str) -> None:
    """Say where an outbox is to be sent (the address without credentials, to be shown)."""
    outbox.mkdir(parents=True, exist_ok=True)
    files.write_json(outbox / "run.json", {"tracking_uri": uri, "run_id": run_id})
