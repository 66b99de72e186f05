"""What is to be logged, as data: sent to the tracking store at once, or kept until it is back.

Each operation can be repeated without harm (metrics keep their time stamps, artifacts are
overwritten, a model is logged once a run), so an interrupted upload is simply done again.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    RunTag,
)
from mlflow.models import Model
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from headstart.common import files

# What MLflow's stores accept in one call.
_METRICS_A_CALL = 1000
_PARAMS_A_CALL = 100
MODEL_TAG = "headstart.model_id"
_PACKAGE_SHA256_TAG = "headstart.package_sha256"
# Of MLflow's own tags, the one that a run and its logged model share.
_COMMIT_TAG = "mlflow.source.git.commit"
_OPERATIONS, _DESCRIPTOR = "operations.jsonl", "run.json"


@dataclass(frozen=True)
class Operation:
    """One thing to log on a run. `values` and `path` depend on `kind`."""

    kind: Literal["params", "tags", "metrics", "inputs", "artifact", "model", "status"]
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
        case "inputs":
            client.log_inputs(run_id, [_dataset_input(values) for values in operation.values])
        case "artifact":
            _log_artifact(client, run_id, Path(operation.path or ""), operation.folder)
        case "model":
            _log_model(client, run_id, Path(operation.path or ""), operation.values)
        case "status":
            client.set_terminated(run_id, status=operation.values)


@dataclass(frozen=True)
class Outbox:
    """What waits to be sent of one run: `folder`, for the store at `uri` (without credentials)."""

    folder: Path
    uri: str
    run_id: str

    def keep(self, operation: Operation) -> None:
        """Append an operation, with a copy of the files it sends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = {"tracking_uri": self.uri, "run_id": self.run_id}
        files.write_json(self.folder / _DESCRIPTOR, descriptor)
        if operation.path is not None:
            operation = replace(operation, path=self._copy(Path(operation.path)))
        with (self.folder / _OPERATIONS).open("ab+") as stream:
            # After a line that a kill cut off, begin a new one.
            if stream.tell() and not self._ends_with_newline():
                stream.write(b"\n")
            stream.write(json.dumps(asdict(operation)).encode() + b"\n")

    def operations(self) -> Iterator[Operation]:
        """All operations in their order; lines that were cut off are left out."""
        path = self.folder / _OPERATIONS
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            try:
                operation = Operation(**json.loads(line))
            except json.JSONDecodeError:
                continue
            if operation.path is not None:
                operation = replace(operation, path=str(self.folder / operation.path))
            yield operation

    def _copy(self, path: Path) -> str:
        """Copy a file or folder, which the next run would replace; relative to the outbox."""
        number = sum(1 for _ in self.folder.iterdir())
        while (parent := self.folder / f"{number:04d}").exists():
            number += 1
        parent.mkdir()
        copy = parent / path.name
        if path.is_dir():
            shutil.copytree(path, copy)
        else:
            shutil.copy2(path, copy)
        return copy.relative_to(self.folder).as_posix()

    def _ends_with_newline(self) -> bool:
        with (self.folder / _OPERATIONS).open("rb") as stream:
            stream.seek(-1, os.SEEK_END)
            return stream.read(1) == b"\n"


def outboxes(pending: Path) -> list[Outbox]:
    """All outboxes in the folder of those that wait, the oldest runs' first."""
    found = []
    for path in sorted(pending.glob(f"*/{_DESCRIPTOR}")):
        meant = files.read_json(path)
        found.append(Outbox(path.parent, meant["tracking_uri"], meant["run_id"]))
    return found


def _dataset_input(values: dict[str, str]) -> DatasetInput:
    dataset = Dataset(values["name"], values["digest"], values["source_type"], values["source"])
    return DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, values["context"])])


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
    """Log a saved pyfunc folder as the run's model; once, unless it is another package by now.

    The logged model carries the run's lineage: its params and the tags that are not MLflow's.
    """
    run = client.get_run(run_id)
    tags = run.data.tags
    if tags.get(_PACKAGE_SHA256_TAG) == values["sha256"] and MODEL_TAG in tags:
        return
    ours = {k: v for k, v in tags.items() if not k.startswith("mlflow.") or k == _COMMIT_TAG}
    carried = {k: v for k, v in ours.items() if k not in (MODEL_TAG, _PACKAGE_SHA256_TAG)}
    logged = client.create_logged_model(
        run.info.experiment_id,
        name=values["name"],
        source_run_id=run_id,
        tags=carried,
        params=run.data.params,
        model_type="image-classifier",
    )
    copy = folder.parent / f".{folder.name}.{logged.model_id}"
    try:
        shutil.copytree(folder, copy)
        # Not Model.load, which reads a path with `%` in it as an address.
        mlmodel = Model.from_dict(yaml.safe_load((copy / "MLmodel").read_text(encoding="utf-8")))
        mlmodel.run_id, mlmodel.model_id, mlmodel.model_uuid = (run_id, logged.model_id, None)
        # MLflow would note the folder on this machine; the model is found by its id.
        mlmodel.artifact_path = values["name"]
        mlmodel.save(str(copy / "MLmodel"))
        client.log_model_artifacts(logged.model_id, str(copy))
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    client.set_tag(run_id, MODEL_TAG, logged.model_id)
    client.set_tag(run_id, _PACKAGE_SHA256_TAG, values["sha256"])
