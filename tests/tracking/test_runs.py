"""One run, opened by train and resumed by later stages, against MLflow's real SQLite store."""

import io
from collections.abc import Mapping
from pathlib import Path

import mlflow
import pytest
import yaml
from mlflow import MlflowClient
from PIL import Image

from headstart.common.errors import TrackingError
from headstart.common.paths import Project
from headstart.tracking.dvc_dataset import DvcDatasetSource
from headstart.tracking.lineage import gather_lineage
from headstart.tracking.runs import new_run, read_run_id, recorded_run
from headstart.tracking.store import open_store, tracking_uri
from tests.tracking.conftest import new_model_run, record_run


def _client(project: Project) -> MlflowClient:
    return MlflowClient(tracking_uri(project.root))


def _train(project: Project, metrics: Mapping[str, float]) -> str:
    lineage = gather_lineage(project, "train", {"fingerprint": "f00"})
    with new_run(project, "a name", lineage.tags) as run:
        run.log_params({"train.epochs": "3"})
        run.log_results(metrics, "", [], curve=[{"loss": 2.0}, {"loss": 1.0}])
        run.log_inputs([(output, "training") for output in lineage.inputs], lineage)
        run.log_text("seed: 1\n", "params.yaml")
        record_run(project, run.run_id)
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


def test_later_stages_resume_the_recorded_run(workspace: Project) -> None:
    run_id = _train(workspace, {})
    with recorded_run(workspace, "evaluate", reads="test") as run:
        run.log_results({"test_accuracy": 0.75}, "", [])
    found = _client(workspace).get_run(run_id)
    assert found.data.metrics["test_accuracy"] == 0.75
    assert found.data.tags["dvc.stage.evaluate"] == "done"
    assert found.info.status == "FINISHED"


def test_params_are_logged_once(workspace: Project) -> None:
    _train(workspace, {})
    with recorded_run(workspace, "package") as run:
        run.log_params({"train.epochs": "9", "new": "1"})
    assert _client(workspace).get_run(run.run_id).data.params == {"train.epochs": "3", "new": "1"}


def test_images_are_logged_once_each_where_the_image_grid_finds_them(workspace: Project) -> None:
    def picture(grey: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (160, 192), (grey, grey, grey)).save(buffer, "PNG")
        return buffer.getvalue()

    with new_run(workspace, "a name", {}) as run:
        run.log_images("worst_errors", [picture(1), picture(2)])
        run.log_images("worst_errors", [picture(1), picture(2), picture(3)])
    client = _client(workspace)
    names = [Path(file.path).name for file in client.list_artifacts(run.run_id, "images")]
    # MLflow keeps each as it is, and smaller.
    assert sorted(name.partition("+timestamp")[0] for name in names) == [
        f"worst_errors+step+{step}" for step in (0, 0, 1, 1, 2, 2)
    ]
    assert client.get_run(run.run_id).data.tags["mlflow.loggedImages"] == "True"
    (first,) = [name for name in names if "+step+0+" in name and name.endswith(".png")]
    with Image.open(client.download_artifacts(run.run_id, f"images/{first}")) as image:
        assert image.getpixel((0, 0)) == (1, 1, 1)
    assert not list((workspace.root / ".headstart" / "pending").iterdir())


def test_a_failure_marks_the_run_failed(workspace: Project) -> None:
    with pytest.raises(ValueError, match="bad"), new_model_run(workspace, {}) as run:
        raise ValueError("bad thing at https://ann:pw@host/")
    found = _client(workspace).get_run(run.run_id)
    assert found.info.status == "FAILED"
    assert found.data.tags["error"] == "bad thing at https://host/"


def test_a_run_the_store_lacks_is_an_error_with_the_remedy(workspace: Project) -> None:
    record_run(workspace, "0" * 32)
    with (
        pytest.raises(TrackingError, match=r"has no run 0{32}.*dvc repro --force --single-item"),
        recorded_run(workspace, "package"),
    ):
        pass


def test_no_record_is_an_error_with_the_remedy(workspace: Project) -> None:
    with pytest.raises(TrackingError, match=r"run\.json is missing: run `dvc repro train`"):
        read_run_id(workspace.run)
