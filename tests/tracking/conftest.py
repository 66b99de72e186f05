"""A small workspace with git, dvc.yaml and dvc.lock, as DVC leaves it."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from headstart.common import files
from headstart.common.paths import Project
from headstart.tracking.lineage import gather_lineage
from headstart.tracking.runs import Run, new_run

STAGES = {
    "fetch": {"cmd": "x", "deps": ["data/own"], "outs": ["data/fetched"]},
    "extract": {
        "cmd": "x",
        "deps": ["data/fetched", "src/headstart/a.py"],
        "outs": ["data/features.h5"],
    },
    "train": {
        "cmd": "x",
        "deps": ["data/features.h5"],
        "outs": ["models/model.h5", "models/run.json"],
    },
    "evaluate": {
        "cmd": "x",
        "deps": ["models/model.h5", "models/run.json", "data/features.h5"],
        "metrics": [{"reports/metrics.json": {"cache": False}}],
    },
}


def git(root: Path, *arguments: str) -> str:
    """Run git in `root`, with an identity of its own."""
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.invalid"]
    command = ["git", "-C", str(root), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def workspace(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A committed workspace; nothing of the environment points to another tracking store."""
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "DVC_"))]:
        if name != "MLFLOW_DISABLE_TELEMETRY":
            monkeypatch.delenv(name)
    # A folder whose name means something else in an address.
    root = tmp_path / "my café #1 50%20?x"
    (root / "src").mkdir(parents=True)
    (root / "data").mkdir()
    (root / "models").mkdir()
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}, sort_keys=False))
    (root / "params.yaml").write_text("seed: 1\n")
    (root / "src" / "code.py").write_text("x = 1\n")
    (root / "data" / "features.h5").write_bytes(b"features")
    (root / ".gitignore").write_text("/data/\n/models/\n/.headstart/\nmlflow.db\nmlruns/\n")
    lock = {
        "fetch": {
            "deps": [{"path": "data/own", "md5": "aa.dir"}],
            "outs": [{"path": "data/fetched", "md5": "bb.dir"}],
        },
        "extract": {
            "outs": [
                {
                    "path": "data/features.h5",
                    "md5": hashlib.md5(b"features", usedforsecurity=False).hexdigest(),
                    "size": 8,
                }
            ]
        },
    }
    (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": lock}))
    git(root, "init", "-q", "-b", "main")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "first")
    shutil.copy(empty_database, root / "mlflow.db")
    monkeypatch.chdir(root)
    return Project(root)


def new_model_run(project: Project, tags: dict[str, str]) -> Run:
    """Open a run as train does, with its lineage alone."""
    return new_run(project, "n", gather_lineage(project, "train", tags).tags)


def record_run(project: Project, run_id: str) -> None:
    """Write models/run.json as train does."""
    header = {"format": "headstart-run", "format_version": 1}
    files.write_json(project.run, {**header, "run_id": run_id, "experiment_name": "headstart"})
