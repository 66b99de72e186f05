"""One run, opened by train and gone on with by later stages, against MLflow's real SQLite store."""

from collections.abc import Mapping
from pathlib import Path

import mlflow
import pytest
import yaml
from mlflow import MlflowClient

from headstart.common.errors import TrackingError
from headstart.common.paths import Project
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
    assert [m.step for m in client.get_metric_history(run_id, "while_training/train_loss")] == [
        1,
        2,
    ]
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


def test_no_tag_holds_the_password_of_the_source(workspace: Project) -> None:
    path = workspace.root / "dvc.lock"
    lock = yaml.safe_load(path.read_text())
    lock["stages"]["fetch"]["deps"] = [{"path": "https://ann:hunter2@host/own.zip", "md5": "aa"}]
    path.write_text(yaml.safe_dump(lock))
    tags = _client(workspace).get_run(_train(workspace, {})).data.tags
    assert tags["dvc.source"] == "https://host/own.zip"
    assert "hunter2" not in str(tags)


def test_a_run_of_uncommitted_code_says_so(workspace: Project) -> None:
    (workspace.root / "src" / "code.py").write_text("x = 2\n")
    tags = _client(workspace).get_run(_train(workspace, {})).data.tags
    assert tags["git.dirty"] == "true"


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


def _given_run(
    project: Project, monkeypatch: pytest.MonkeyPatch, status: str, params: Mapping[str, str]
) -> str:
    """MLFLOW_RUN_ID as a shell holds it."""
    store = open_store(project.root)
    run_id = str(store.client.create_run(store.experiment_id).info.run_id)
    for name, value in params.items():
        store.client.log_param(run_id, name, value)
    store.client.set_terminated(run_id, status)
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    return run_id


@pytest.mark.parametrize(
    ("status", "params"),
    [
        # `mlflow run -P` has logged its own text of the value.
        ("RUNNING", {"train.epochs": "3.0"}),
        ("RUNNING", {}),
        # Begun again after an error.
        ("FAILED", {"train.epochs": "3", "seed": "0", "more": "1"}),
    ],
)
def test_an_open_run_or_one_of_the_same_params_is_resumed(
    workspace: Project, monkeypatch: pytest.MonkeyPatch, status: str, params: dict[str, str]
) -> None:
    given = _given_run(workspace, monkeypatch, status, params)
    lineage = gather(workspace, "train", {})
    with training_run(workspace, "n", lineage, {"train.epochs": "3", "seed": "0"}) as run:
        assert run.run_id == given
    store = open_store(workspace.root)
    (found,) = store.client.search_runs([store.experiment_id])
    assert found.data.params == {"train.epochs": "3", "seed": "0", **params}
    assert found.info.status == "FINISHED"


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
@pytest.mark.parametrize("params", [{"train.epochs": "9", "seed": "0"}, {"seed": "0"}, {}])
def test_a_run_of_another_training_is_not_written_to(
    workspace: Project, monkeypatch: pytest.MonkeyPatch, status: str, params: dict[str, str]
) -> None:
    given = _given_run(workspace, monkeypatch, status, params)
    before = _client(workspace).get_run(given).to_dictionary()
    lineage = gather(workspace, "train", {})
    with (
        pytest.raises(TrackingError, match=rf"MLFLOW_RUN_ID .*{given} is {status}.*unset") as told,
        training_run(workspace, "n", lineage, {"train.epochs": "3", "seed": "0"}),
    ):
        pytest.fail("the training has begun")
    assert f"train.epochs is {params.get('train.epochs', 'not logged')}, not 3" in str(told.value)
    assert _client(workspace).get_run(given).to_dictionary() == before


@pytest.mark.parametrize("given", ["0" * 32, "no/id", "deleted"])
def test_a_run_id_of_no_active_run_is_named(
    workspace: Project, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    if given == "deleted":
        given = _given_run(workspace, monkeypatch, "FINISHED", {})
        _client(workspace).delete_run(given)
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    lineage = gather(workspace, "train", {})
    with (
        pytest.raises(TrackingError, match=rf"MLFLOW_RUN_ID must name .*{given}.*unset "),
        training_run(workspace, "n", lineage),
    ):
        pytest.fail("the training has begun")


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


def test_a_deleted_experiment_is_named(workspace: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(workspace.root)
    store.client.delete_experiment(store.experiment_id)
    with pytest.raises(TrackingError, match="is deleted: restore it"):
        open_store(workspace.root)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", store.experiment_id)
    with pytest.raises(TrackingError, match="is deleted: restore it"):
        open_store(workspace.root)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MLFLOW_EXPERIMENT_ID", "99"),
        ("MLFLOW_EXPERIMENT_ID", "headstart"),
        ("MLFLOW_EXPERIMENT_ID", "9" * 30),
        ("MLFLOW_EXPERIMENT_NAME", "x" * 600),
        ("MLFLOW_TRACKING_URI", "foo://x"),
        ("MLFLOW_TRACKING_URI", "mlruns"),
        ("MLFLOW_TRACKING_URI", "http://["),
        ("MLFLOW_TRACKING_URI", "nodatabase+nodriver://x/y"),
    ],
)
def test_a_variable_that_cannot_be_meant_is_named_with_what_was_got(
    workspace: Project, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(TrackingError, match=rf"{variable} must be .*unset it") as caught:
        open_store(workspace.root)
    assert value in str(caught.value)
    assert "must answer" not in str(caught.value)


def test_two_variables_that_name_two_experiments_are_an_error(
    workspace: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(workspace.root)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "headstart")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", store.experiment_id)
    assert open_store(workspace.root).experiment_id == store.experiment_id
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    with pytest.raises(TrackingError, match="must name one experiment"):
        open_store(workspace.root)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "custom_model_development"),
        ("genai_development_inferred", "custom_model_development"),
        ("genai_development", "genai_development"),
    ],
)
def test_an_experiment_opens_as_model_training_unless_a_person_chose(
    workspace: Project, before: str | None, after: str
) -> None:
    client = _client(workspace)
    made = client.create_experiment("headstart")
    if before is not None:
        client.set_experiment_tag(made, "mlflow.experimentKind", before)
    open_store(workspace.root)
    assert client.get_experiment(made).tags["mlflow.experimentKind"] == after


def test_a_worktree_uses_the_main_checkouts_database(workspace: Project, tmp_path: Path) -> None:
    from tests.tracking.conftest import git

    tree = tmp_path / "tree"
    git(workspace.root, "worktree", "add", "-q", str(tree))
    assert tracking_uri(tree) == tracking_uri(workspace.root)
