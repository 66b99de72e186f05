"""`headstart tidy` on a project with real experiments: what stays still serves and reproduces."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.e2e.conftest import Workspace, free_port, make_workspace, server

pytestmark = pytest.mark.slow


def _du(workspace: Workspace) -> int:
    folders = (workspace.root / "mlruns", workspace.root / ".dvc" / "cache")
    return sum(p.stat().st_size for f in folders for p in f.rglob("*") if p.is_file())


def test_what_stays_serves_and_reproduces_and_the_rest_frees_what_was_said(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "headstart", tmp_path / "cache")
    workspace.run("dvc", "repro")
    workspace.run("git", "add", "-A")
    workspace.run("git", "commit", "-q", "-m", "the lock")
    changes = ["seed=1", "image.size_px=96", "search.n_trials=3", "extract.pooling=max"]
    changes += ["image.fit=crop", "search.default_head.kind=ridge", "search.folds=3", "seed=2"]
    for change in changes:
        workspace.run("dvc", "exp", "run", "--temp", "-S", change)
    before = _du(workspace)
    said = workspace.run("headstart", "tidy", "--keep", "2")
    assert "Nothing is removed yet" in said
    assert _du(workspace) == before
    said = workspace.run("headstart", "tidy", "--keep", "2", "--yes")
    megabytes = float(said.rpartition("Removed: ")[2].split(" MB")[0])
    assert (before - _du(workspace)) / 1e6 == pytest.approx(megabytes, rel=0.03)
    client = MlflowClient(workspace.tracking_uri)
    experiment = client.get_experiment_by_name("headstart")
    assert experiment is not None
    kept = client.search_runs([experiment.experiment_id], "tags.`headstart.kind` = 'model'")
    assert 2 <= len(kept) < len(changes)
    assert "There is nothing to remove" in workspace.run("headstart", "tidy", "--keep", "2")
    best = next(r for r in kept if "dvc.exp_name" in r.data.tags)
    output = tmp_path / "verdict.json"
    name = best.data.tags["dvc.exp_name"]
    said = workspace.run("headstart", "reproduce", name, "--output", str(output))
    assert json.loads(output.read_text())["holds"], said
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = ["headstart", "serve", "models:/headstart@champion", "--port", str(port)]
    with server(workspace, *command, url=f"{url}/ready", log=tmp_path / "log"):
        pass
    for run in kept:
        workspace.run(
            "headstart", "predict", "data/fetched", "--model", f"runs:/{run.info.run_id}/model"
        )
