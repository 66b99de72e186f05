"""Killing `dvc repro` in the middle of extract or search, and running it again."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import TRIALS, Workspace, make_workspace, replace
from tests.e2e.test_pipeline import OUTPUTS

pytestmark = pytest.mark.slow


def _kill_when(workspace: Workspace, condition: "str", log: Path, pattern: str) -> None:
    """Start `dvc repro`, wait until files match `pattern` below `condition`, kill the group."""
    process = workspace.start("dvc", "repro", log=log)
    deadline = time.monotonic() + 300
    try:
        while time.monotonic() < deadline:
            found = [p for p in Path(condition).rglob(pattern) if p.is_file()]
            if found:
                return
            assert process.poll() is None, f"dvc repro ended too early:\n{log.read_text()}"
            time.sleep(0.02)
        raise AssertionError(f"nothing to kill at:\n{log.read_text()}")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        (workspace.root / ".dvc" / "tmp" / "rwlock").unlink(missing_ok=True)


@pytest.mark.ci
def test_killed_extract_and_search_go_on(reproduced: Workspace, tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "headstart", tmp_path / "cache")
    # Small shards, so that there is something to lose and something to keep.
    log = tmp_path / "log"
    _kill_when(workspace, str(workspace.cache), log, "*.h5")
    shards = {p: p.stat().st_mtime_ns for p in workspace.cache.rglob("*.h5")}
    assert not (workspace.root / "data" / "features.h5").exists()
    _kill_when(workspace, str(workspace.root / ".headstart"), log, "optuna.db")
    workspace.run("dvc", "repro")
    for path, written in shards.items():
        if path.exists():
            assert path.stat().st_mtime_ns == written, f"{path.name} was extracted again"
    trials = (workspace.root / "reports/search/trials.csv").read_text().splitlines()[1:]
    assert len([row for row in trials if ",FAIL," not in row]) == TRIALS
    for name in OUTPUTS[:3]:
        assert (workspace.root / name).read_bytes() == (reproduced.root / name).read_bytes()


def test_a_changed_encoder_size_extracts_again_and_back_is_free(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "headstart", tmp_path / "cache")
    workspace.run("dvc", "repro", "extract")
    first = (workspace.root / "data/features.h5").read_bytes()
    replace(workspace.root / "params.yaml", "  size_px: 224", "  size_px: 128")
    workspace.run("dvc", "repro", "extract")
    assert (workspace.root / "data/features.h5").read_bytes() != first
    replace(workspace.root / "params.yaml", "  size_px: 128", "  size_px: 224")
    workspace.run("dvc", "repro", "extract", "--no-run-cache")
    assert (workspace.root / "data/features.h5").read_bytes() == first
