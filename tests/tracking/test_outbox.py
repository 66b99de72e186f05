"""What waits to be sent: kept whole, sent in order, one refused run does not block the others."""

import json
from pathlib import Path

import pytest
from mlflow.models import Model

from headstart.common.errors import TrackingError
from headstart.common.paths import Project
from headstart.tracking.outbox import Operation, Outbox, apply, outboxes
from headstart.tracking.runs import pending_folder
from headstart.tracking.store import is_away, open_store
from headstart.tracking.sync import sync


def test_a_line_that_a_kill_cut_off_costs_that_line_alone(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "r", "sqlite:///x", "r")
    box.keep(Operation("tags", {"a": "1"}))
    with (box.folder / "operations.jsonl").open("a") as stream:
        stream.write('{"kind": "tags", "val')
    box.keep(Operation("tags", {"b": "2"}))
    assert [operation.values for operation in box.operations()] == [{"a": "1"}, {"b": "2"}]


def test_files_are_copied_and_move_with_the_outbox(tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_bytes(b"first")
    box = Outbox(tmp_path / "r", "sqlite:///x", "r")
    box.keep(Operation("artifact", path=str(tmp_path / "model.h5")))
    (tmp_path / "model.h5").write_bytes(b"second")
    box.folder.rename(tmp_path / "moved")
    (found,) = outboxes(tmp_path)
    (operation,) = found.operations()
    assert Path(operation.path or "").read_bytes() == b"first"


def test_one_refused_run_does_not_block_the_others(workspace: Project) -> None:
    store = open_store(workspace.root)
    run_id = store.client.create_run(store.experiment_id).info.run_id
    pending = pending_folder(workspace.root)
    for name, uri in (("0" * 32, store.uri), (run_id, store.uri), ("f" * 32, "http://elsewhere")):
        Outbox(pending / name, uri, name).keep(Operation("tags", {"from": "outbox"}))
    with pytest.raises(TrackingError) as caught:
        sync(workspace)
    assert "run 00000000000000000000000000000000 must be accepted by the store" in str(caught.value)
    assert "belongs to http://elsewhere" in str(caught.value)
    assert "1 other runs were sent" in str(caught.value)
    assert store.client.get_run(run_id).data.tags["from"] == "outbox"
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
        apply(store.client, run_id, Operation("model", values, str(folder)))
        assert len(store.client.search_logged_models([store.experiment_id])) == count


def test_a_full_disk_is_not_a_store_that_is_away() -> None:
    import errno

    assert not is_away(OSError(errno.ENOSPC, "No space left on device"))
    assert not is_away(FileNotFoundError(errno.ENOENT, "No such file"))
    assert is_away(ConnectionRefusedError(errno.ECONNREFUSED, "refused"))
    assert is_away(OSError("requests says no number"))
