"""A real tracking server, killed in the middle of a training, and the upload when it is back."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient

from headstart.common.paths import Project
from headstart.tracking.lineage import gather
from headstart.tracking.runs import continued_run, pending_folder, training_run, write_record
from headstart.tracking.sync import sync


@contextmanager
def _server(folder: Path, port: int) -> Iterator[None]:
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/server.db",
        "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except OSError:
                time.sleep(0.25)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
@pytest.mark.ci
def test_a_server_killed_in_the_middle_costs_nothing(
    workspace: Project,
    tmp_path: Path,
    empty_database: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "server.db").write_bytes(empty_database.read_bytes())
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    serving = tmp_path / "serving"
    serving.mkdir()
    (serving / "MLmodel").write_text("flavors: {}\nmodel_uuid: x\n")
    (serving / "artifacts").mkdir()
    (serving / "artifacts" / "model.h5").write_bytes(b"model")
    lineage = gather(workspace, "train", {})
    running = _server(tmp_path, port)
    running.__enter__()
    with training_run(workspace, "n", lineage) as run:
        run.log_metrics({"before": 1.0})
        running.__exit__(None, None, None)
        run.log_epochs([{"loss": 2.0}, {"loss": 1.0}])
        run.log_params({"head.width": "8"})
        run.log_inputs([(output, "training") for output in lineage.inputs], lineage)
        run.log_artifact(workspace.features)
        run.log_model(serving, "model")
        write_record(workspace.run, run.record)
    assert "went away" in capsys.readouterr().err
    assert (pending_folder(workspace.root) / run.run_id / "run.json").is_file()
    with _server(tmp_path, port):
        # The evaluation of a run whose outbox is not sent yet joins the outbox.
        with continued_run(workspace, {"dvc.stage.evaluate": "done"}) as again:
            again.log_metrics({"test_accuracy": 0.5})
        (first,) = sync(workspace)
        assert first.run_id == run.run_id
        assert sync(workspace) == []
        client = MlflowClient(uri)
        found = client.get_run(run.run_id)
        assert found.info.status == "FINISHED"
        assert found.data.metrics == {
            "before": 1.0, "while_training/train_loss": 1.0, "test_accuracy": 0.5,
        }  # fmt: skip
        assert found.data.params == {"head.width": "8"}
        assert found.data.tags["dvc.stage.evaluate"] == "done"
        history = client.get_metric_history(run.run_id, "while_training/train_loss")
        assert [metric.step for metric in history] == [1, 2]
        assert [a.path for a in client.list_artifacts(run.run_id)] == ["features.h5"]
        assert found.data.tags["headstart.model_id"].startswith("m-")
        assert found.inputs is not None
        assert [i.dataset.name for i in found.inputs.dataset_inputs] == ["data/features.h5"]
