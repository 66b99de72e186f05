"""Offline runs: what is kept is sent in order, and one refused run does not block the others."""

import errno
import json
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
from mlflow.models import Model

from headstart.common.errors import TrackingError
from headstart.common.paths import Project
from headstart.tracking.lineage import gather_lineage
from headstart.tracking.offline_runs import (
    OfflineRun,
    Operation,
    offline_folder,
    offline_runs,
    send_operation,
    sync_runs,
)
from headstart.tracking.runs import new_run, recorded_run
from headstart.tracking.store import is_away, open_store
from tests.tracking.conftest import record_run


def test_a_line_that_a_kill_cut_off_costs_that_line_alone(tmp_path: Path) -> None:
    run = OfflineRun(tmp_path / "r", "sqlite:///x", "r")
    run.keep(Operation("tags", {"a": "1"}))
    with (run.folder / "operations.jsonl").open("a") as stream:
        stream.write('{"kind": "tags", "val')
    run.keep(Operation("tags", {"b": "2"}))
    assert [operation.values for operation in run.operations()] == [{"a": "1"}, {"b": "2"}]


def test_files_are_copied_and_move_with_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADSTART_STATE", str(tmp_path / "state"))
    (tmp_path / "model.h5").write_bytes(b"first")
    run = OfflineRun(offline_folder(tmp_path) / "r", "sqlite:///x", "r")
    run.keep(Operation("artifact", path=str(tmp_path / "model.h5")))
    (tmp_path / "model.h5").write_bytes(b"second")
    run.folder.rename(run.folder.with_name("r.sending"))
    run.keep(Operation("artifact", path=str(tmp_path / "model.h5")))
    found = offline_runs(tmp_path)
    assert [each.folder.name for each in found] == ["r.sending", "r"], "the first begun comes first"
    paths = [Path(operation.path or "") for each in found for operation in each.operations()]
    assert [path.read_bytes() for path in paths] == [b"first", b"second"]


def test_what_version_0_1_0_kept_is_sent(workspace: Project) -> None:
    store = open_store(workspace.root)
    run_id = store.client.create_run(store.experiment_id).info.run_id
    folder = workspace.root / ".headstart" / "pending" / run_id
    (folder / "0002").mkdir(parents=True)
    (folder / "0002" / "a.txt").write_text("hello")
    (folder / "run.json").write_text(json.dumps({"tracking_uri": store.uri, "run_id": run_id}))
    lines = [
        '{"kind": "metrics", "values": [["val_accuracy", 0.5, 1700000000000, 0]], "path": null, '
        '"folder": null}',
        '{"kind": "artifact", "values": null, "path": "0002/a.txt", "folder": "kept"}',
        '{"kind": "status", "values": "FINISHED", "path": null, "folder": null}',
    ]
    (folder / "operations.jsonl").write_text("\n".join(lines) + "\n")
    (synced,) = sync_runs(workspace)
    assert (synced.run_id, synced.n_operations) == (run_id, 3)
    found = store.client.get_run(run_id)
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"val_accuracy": 0.5})
    assert [file.path for file in store.client.list_artifacts(run_id, "kept")] == ["kept/a.txt"]
    assert not folder.exists()


def test_one_refused_run_does_not_block_the_others(workspace: Project) -> None:
    store = open_store(workspace.root)
    run_id = store.client.create_run(store.experiment_id).info.run_id
    pending = offline_folder(workspace.root)
    for name, uri in (("0" * 32, store.uri), (run_id, store.uri), ("f" * 32, "http://elsewhere")):
        OfflineRun(pending / name, uri, name).keep(Operation("tags", {"from": "offline"}))
    with pytest.raises(TrackingError) as caught:
        sync_runs(workspace)
    assert "run 00000000000000000000000000000000 must be accepted by the store" in str(caught.value)
    assert "belongs to http://elsewhere" in str(caught.value)
    assert "1 other runs were sent" in str(caught.value)
    assert store.client.get_run(run_id).data.tags["from"] == "offline"
    left = {json.loads(path.read_text())["run_id"] for path in pending.glob("*/run.json")}
    assert left == {"0" * 32, "f" * 32}


def test_a_model_that_is_sent_twice_is_logged_once(workspace: Project, tmp_path: Path) -> None:
    store = open_store(workspace.root)
    run_id = store.client.create_run(store.experiment_id).info.run_id
    folder = tmp_path / "serving"
    folder.mkdir()
    Model().save(str(folder / "MLmodel"))
    for sha256, count in (("a", 1), ("a", 1), ("b", 2)):
        values = {"name": "model", "sha256": sha256 * 64}
        send_operation(store.client, run_id, Operation("model", values, str(folder)))
        assert len(store.client.search_logged_models([store.experiment_id])) == count


def test_a_full_disk_is_not_a_store_that_is_away() -> None:
    assert not is_away(OSError(errno.ENOSPC, "No space left on device"))
    assert not is_away(FileNotFoundError(errno.ENOENT, "No such file"))
    assert is_away(ConnectionRefusedError(errno.ECONNREFUSED, "refused"))
    assert is_away(OSError("requests says no number"))


@contextmanager
def running_server(folder: Path, port: int) -> Iterator[None]:
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
    lineage = gather_lineage(workspace, "train", {})
    running = running_server(tmp_path, port)
    running.__enter__()
    with new_run(workspace, "n", lineage.tags) as run:
        run.log_results({"before": 1.0}, "", [])
        running.__exit__(None, None, None)
        run.log_epochs([{"loss": 2.0}, {"loss": 1.0}])
        run.log_params({"head.width": "8"})
        run.log_inputs([(output, "training") for output in lineage.inputs], lineage)
        run.log_artifact(workspace.features)
        run.log_model(serving)
        record_run(workspace, run.run_id)
    assert "went away" in capsys.readouterr().err
    assert (offline_folder(workspace.root) / run.run_id / "run.json").is_file()
    with running_server(tmp_path, port):
        # The evaluation of an offline run that is not sent yet joins it.
        with recorded_run(workspace, "evaluate") as again:
            again.log_results({"test_accuracy": 0.5}, "", [])
        (first,) = sync_runs(workspace)
        assert first.run_id == run.run_id
        assert sync_runs(workspace) == []
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
