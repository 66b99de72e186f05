"""Offline runs: what a run logs while the tracking store is away, and the sync that sends it later.

What is to be logged is data, an operation. A run sends it at once, or keeps it here. Each operation
can be repeated without harm (metrics keep their time stamps, artifacts are overwritten, a model is
logged once a run), so an interrupted sync is simply done again.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import FileLock
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
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT
from PIL import Image

from headstart.common import files
from headstart.common.errors import TrackingError, one_line
from headstart.common.paths import Project, state_folder
from headstart.common.secrets import without_secrets
from headstart.tracking.store import answering, open_store

# What MLflow's stores accept in one call.
METRICS_PER_CALL = 1000
_PARAMS_PER_CALL = 100
MODEL_TAG = "headstart.model_id"
_PACKAGE_SHA256_TAG = "headstart.package_sha256"
# Of MLflow's own tags, the one that a run and its logged model share.
_COMMIT_TAG = "mlflow.source.git.commit"
_OPERATIONS, _DESCRIPTOR = "operations.jsonl", "run.json"
# A run that is being sent has another folder, so that a stage that still writes begins a new one.
_SENDING = ".sending"


@dataclass(frozen=True)
class Operation:
    """One thing to log on a run. `values` and `path` depend on `kind`."""

    kind: Literal["params", "tags", "metrics", "inputs", "artifact", "image", "model", "status"]
    values: Any = None
    path: str | None = None
    folder: str | None = None


def send_operation(client: MlflowClient, run_id: str, operation: Operation) -> None:
    """Send one operation to the tracking store."""
    values, path = operation.values, Path(operation.path or "")
    match operation.kind:
        case "params":
            # A param cannot change once it is logged; `mlflow run -P` has logged some before.
            known = client.get_run(run_id).data.params
            new = [Param(key, value) for key, value in values.items() if key not in known]
            for start in range(0, len(new), _PARAMS_PER_CALL):
                client.log_batch(run_id, params=new[start : start + _PARAMS_PER_CALL])
        case "tags":
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in values.items()])
        case "metrics":
            metrics = [Metric(key, value, time_ms, step) for key, value, time_ms, step in values]
            for start in range(0, len(metrics), METRICS_PER_CALL):
                client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_CALL])
        case "inputs":
            inputs = [
                DatasetInput(
                    Dataset(each["name"], each["digest"], each["source_type"], each["source"]),
                    [InputTag(MLFLOW_DATASET_CONTEXT, each["context"])],
                )
                for each in values
            ]
            client.log_inputs(run_id, inputs)
        case "artifact" if path.is_dir():
            client.log_artifacts(run_id, str(path), operation.folder)
        case "artifact":
            client.log_artifact(run_id, str(path), operation.folder)
        case "image":
            # In the form in which MLflow's image grid compares runs: each name once.
            name = f"{values['key']}+step+{values['step']}+"
            images = client.list_artifacts(run_id, "images")
            if not any(Path(file.path).name.startswith(name) for file in images):
                with Image.open(path) as image:
                    client.log_image(run_id, image, synchronous=True, **values)
        case "model":
            # A saved pyfunc folder becomes the run's model; once, unless it is another package by
            # now. It carries the run's lineage: params, and the tags that are not MLflow's.
            run = client.get_run(run_id)
            tags = run.data.tags
            if tags.get(_PACKAGE_SHA256_TAG) == values["sha256"] and MODEL_TAG in tags:
                return
            left_out = (MODEL_TAG, _PACKAGE_SHA256_TAG)
            logged = client.create_logged_model(
                run.info.experiment_id,
                name=values["name"],
                source_run_id=run_id,
                tags={
                    name: value
                    for name, value in tags.items()
                    if name == _COMMIT_TAG or not name.startswith(("mlflow.", *left_out))
                },
                params=run.data.params,
                model_type="image-classifier",
            )
            model_id = logged.model_id
            copy = path.parent / f".{path.name}.{model_id}"
            try:
                shutil.copytree(path, copy)
                # Not Model.load, which reads a path with `%` in it as an address.
                text = (copy / "MLmodel").read_text(encoding="utf-8")
                mlmodel = Model.from_dict(yaml.safe_load(text))
                mlmodel.run_id, mlmodel.model_id, mlmodel.model_uuid = run_id, model_id, None
                # MLflow would note the folder on this machine; the model is found by its id.
                mlmodel.artifact_path = values["name"]
                mlmodel.save(str(copy / "MLmodel"))
                client.log_model_artifacts(model_id, str(copy))
            finally:
                shutil.rmtree(copy, ignore_errors=True)
            client.finalize_logged_model(model_id, LoggedModelStatus.READY)
            client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
            client.set_tag(run_id, MODEL_TAG, model_id)
            client.set_tag(run_id, _PACKAGE_SHA256_TAG, values["sha256"])
        case "status":
            client.set_terminated(run_id, status=values)


@dataclass(frozen=True)
class OfflineRun:
    """What is to be sent of one run: `folder`, for the store at `uri` (without credentials)."""

    folder: Path
    uri: str
    run_id: str

    def keep(self, operation: Operation) -> None:
        """Append an operation, with a copy of the files it sends, which the next run replaces."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = {"tracking_uri": self.uri, "run_id": self.run_id}
        files.write_json(self.folder / _DESCRIPTOR, descriptor)
        if operation.path is not None:
            path = Path(operation.path)
            number = sum(1 for _ in self.folder.iterdir())
            while (parent := self.folder / f"{number:04d}").exists():
                number += 1
            parent.mkdir()
            copy = shutil.copytree if path.is_dir() else shutil.copy2
            copy(path, parent / path.name)
            operation = replace(operation, path=f"{parent.name}/{path.name}")
        with (self.folder / _OPERATIONS).open("ab+") as stream:
            if stream.tell():
                # After a line that a kill cut off, begin a new one.
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":
                    stream.write(b"\n")
            stream.write(json.dumps(asdict(operation)).encode() + b"\n")

    def operations(self) -> Iterator[Operation]:
        """Yield all operations in their order; lines that were cut off are left out."""
        path = self.folder / _OPERATIONS
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            try:
                operation = Operation(**json.loads(line))
            except json.JSONDecodeError:
                continue
            if operation.path is not None:
                operation = replace(operation, path=str(self.folder / operation.path))
            yield operation


def offline_folder(root: Path) -> Path:
    """Return the folder that holds a folder per offline run."""
    return state_folder(root) / "pending"


def offline_runs(root: Path) -> list[OfflineRun]:
    """Return all offline runs, for each run the folder that was begun first before the others."""
    found = []
    for path in offline_folder(root).glob(f"*/{_DESCRIPTOR}"):
        meant = files.read_json(path)
        found.append(OfflineRun(path.parent, meant["tracking_uri"], meant["run_id"]))
    # A sync that was interrupted left `….sending`, later ones `…-later.sending`.
    return sorted(
        found, key=lambda run: (run.folder.suffix != _SENDING, len(run.folder.name), run.folder)
    )


@dataclass(frozen=True)
class SyncedRun:
    """What a sync sent of one run."""

    run_id: str
    n_operations: int


def sync_runs(project: Project) -> list[SyncedRun]:
    """Send every offline run to the tracking store it was meant for, and remove its folder.

    Raises:
        TrackingError: the store is still away; or, once all others are sent, a run is meant for
            another store than the one that is set, or the store refused it.
    """
    if not offline_runs(project.root):
        return []
    store = open_store(project.root)
    synced, problems = [], []
    with FileLock(offline_folder(project.root) / "sync.lock"):
        for run in offline_runs(project.root):
            if run.uri != without_secrets(store.uri):
                problems.append(
                    f"run {run.run_id} belongs to {run.uri}, but the tracking store is "
                    f"{without_secrets(store.uri)}: set MLFLOW_TRACKING_URI and sync again"
                )
                continue
            folder = run.folder
            if folder.suffix != _SENDING:
                folder = folder.with_name(f"{folder.name}{_SENDING}")
                while folder.exists():
                    folder = folder.with_name(f"{folder.stem}-later{_SENDING}")
                run.folder.rename(folder)
            operations = list(replace(run, folder=folder).operations())
            try:
                with answering(store.uri):
                    for operation in operations:
                        send_operation(store.client, run.run_id, operation)
            except MlflowException as error:
                problems.append(
                    f"run {run.run_id} must be accepted by the store, but it said: "
                    f"{without_secrets(one_line(error))}; it is kept in {folder}"
                )
                continue
            shutil.rmtree(folder)
            synced.append(SyncedRun(run.run_id, len(operations)))
    if problems:
        done = f"; {len(synced)} other runs were sent" if synced else ""
        raise TrackingError(f"{'; '.join(problems)}{done}")
    return synced
