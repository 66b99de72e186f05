"""One run, opened by train and gone on with by later stages, against MLflow's real SQLite store."""

from collections.abc import Mapping
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from headstart.errors import TrackingError
from headstart.paths import Project
from headstart.tracking.datasets import DvcDatasetSource
from headstart.tracking.lineage import gather
from headstart.tracking.runs import (
    RunRecord,
    continued_run,
    read_record,
    recorded_run_is_there,
    training_run,
    write_record,
)
from headstart.tracking.store import open_store, tracking_uri


def _client(project: Project) -> MlflowClient:
    return MlflowClient(tracking_uri(project.root))


def _train(project: Project, metrics: Mapping[str, float]) -> str:
    lineage = gather(project, "train", {"fingerprint": "f00"})
    with training_run(project, "a name", lineage) as run:
        run.log_params({"train.epochs": "3"})
        run.log_epochs([{"loss": 2.0}, {"loss": 1.0}])
        run.log_metrics(metrics)
        run.log_inputs([(output, "training") for output in lineage.inputs], lineage)
        run.log_text("seed: 1\n", "params.yaml")
        write_record(project.run, run.record)
        return run.run_id


def test_a_trained_run_is_complete(workspace: Project) -> None:
    run_id = _train(workspace, {"val_accuracy": 0.5})
    client = _client(workspace)
    run = client.get_run(run_id)
    assert run.info.run_name == "a name"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"train.epochs": "3"}
    assert run.data.metrics["val_accuracy"] == 0.5
    assert [m.step for m in client.get_metric_history(run_id, "loss")] == [1, 2]
    assert run.data.tags["git.dirty"] == "false"
    assert run.data.tags["fingerprint"] == "f00"
    assert "dvc.data/features.h5.md5" in run.data.tags
    assert run.inputs is not None
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.name == "data/features.h5"
    assert dataset.dataset.digest == run.data.tags["dvc.data/features.h5.md5"]
    assert [tag.value for tag in dataset.tags] == ["training"]
    source = mlflow.data.get_source(dataset)
    assert isinstance(source, DvcDatasetSource)
    assert source.to_dict() == {
        "path": "data/features.h5",
        "rev": run.data.tags["git.commit"],
        "md5": dataset.dataset.digest,
    }
    assert [a.path for a in client.list_artifacts(run_id)] == ["params.yaml"]


def test_the_database_is_the_main_checkouts(workspace: Project) -> None:
    _train(workspace, {})
    assert (workspace.root / "mlflow.db").is_file()
    experiment = open_store(workspace.root)
    found = experiment.client.get_experiment(experiment.experiment_id)
    assert found.artifact_location == (workspace.root / "mlruns").as_uri()


def test_later_stages_go_on_in_the_recorded_run(workspace: Project) -> None:
    run_id = _train(workspace, {})
    with continued_run(workspace, {"dvc.stage.evaluate": "done"}) as run:
        run.log_metrics({"test_accuracy": 0.75})
    found = _client(workspace).get_run(run_id)
    assert found.data.metrics["test_accuracy"] == 0.75
    assert found.data.tags["dvc.stage.evaluate"] == "done"
    assert found.info.status == "FINISHED"


def test_params_are_logged_once(workspace: Project) -> None:
    _train(workspace, {})
    with continued_run(workspace, {}) as run:
        run.log_params({"train.epochs": "9", "new": "1"})
    assert _client(workspace).get_run(run.run_id).data.params == {"train.epochs": "3", "new": "1"}


def test_a_failure_marks_the_run_failed(workspace: Project) -> None:
    lineage = gather(workspace, "train", {})
    with pytest.raises(ValueError, match="bad"), training_run(workspace, "n", lineage) as run:
        raise ValueError("bad thing at https://ann:pw@host/")
    found = _client(workspace).get_run(run.run_id)
    assert found.info.status == "FAILED"
    assert found.data.tags["error"] == "bad thing at https://host/"


def test_the_run_that_mlflow_opened_is_used(
    workspace: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(workspace.root)
    given = store.client.create_run(store.experiment_id)
    store.client.log_param(given.info.run_id, "train.epochs", "from the command line")
    monkeypatch.setenv("MLFLOW_RUN_ID", given.info.run_id)
    assert _train(workspace, {}) == given.info.run_id
    assert len(store.client.search_runs([store.experiment_id])) == 1


def test_a_run_the_store_lacks_is_an_error_with_the_remedy(workspace: Project) -> None:
    write_record(workspace.run, RunRecord("0" * 32, "headstart"))
    assert not recorded_run_is_there(workspace)
    with (
        pytest.raises(TrackingError, match=r"has no run 0{32}.*dvc repro --force --single-item"),
        continued_run(workspace, {}),
    ):
        pass


def test_no_record_is_an_error_with_the_remedy(workspace: Project) -> None:
    with pytest.raises(TrackingError, match=r"run\.json is missing: run `dvc repro train`"):
        read_record(workspace.run)


def test_a_store_that_is_away_is_named_without_credentials(
    workspace: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:pw@127.0.0.1:9")
    with pytest.raises(TrackingError, match="tracking store must answer") as caught:
        open_store(workspace.root)
    assert "http://127.0.0.1:9" in str(caught.value)
    assert "pw" not in str(caught.value)


def test_a_deleted_experiment_is_named(workspace: Project) -> None:
    store = open_store(workspace.root)
    store.client.delete_experiment(store.experiment_id)
    with pytest.raises(TrackingError, match="is deleted: restore it"):
        open_store(workspace.root)


def test_a_worktree_uses_the_main_checkouts_database(workspace: Project, tmp_path: Path) -> None:
    from tests.tracking.conftest import git

    tree = tmp_path / "tree"
    git(workspace.root, "worktree", "add", "-q", str(tree))
    assert tracking_uri(tree) == tracking_uri(workspace.root)
