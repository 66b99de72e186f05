"""What the bridge between DVC and MLflow costs: lineage in a stage, and a `dvc repro` without work.

    python -m bench.tracking

Lineage: what train does to tell where its run came from, beyond opening and ending it: commit and
diff, DVC's hashes, versions, dataset inputs, params, the files of provenance. No work: `dvc repro`
of this project with nothing to do, beside the same number of stages, outputs and images in a
project without any source file, parameter or plot.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from bench.common import Target, print_table, write_results
from headstart.common.paths import Project
from headstart.features.feature_store import FeatureStore
from headstart.heads.config import read_head
from headstart.tracking.runs import new_run
from headstart.tracking.training_runs import open_training

ROOT = Path(__file__).resolve().parent.parent
REPETITIONS = 5
HEADERS = ["what", "seconds (median)", "least", "most"]


def main() -> None:
    """Measure, print and write."""
    with tempfile.TemporaryDirectory() as folder:
        workspace, plain = Path(folder) / "headstart", Path(folder) / "plain"
        environment = _environment(Path(folder))
        subprocess.run(["git", "clone", "-q", str(ROOT), str(workspace)], check=True)
        subprocess.run(["dvc", "repro", "-q"], cwd=workspace, env=environment, check=True)
        subprocess.run(["git", "add", "-A"], cwd=workspace, check=True)
        identity = ["-c", "user.name=b", "-c", "user.email=b@example.invalid"]
        subprocess.run(["git", *identity, "commit", "-qm", "ran"], cwd=workspace, check=True)
        lineage = [_lineage_seconds(workspace) for _ in range(REPETITIONS)]
        _plain_project(workspace, plain, environment)
        ours, theirs = [], []
        for _ in range(REPETITIONS):
            theirs.append(_repro_seconds(plain, environment))
            ours.append(_repro_seconds(workspace, environment))
    rows = [
        _row("lineage of a run", lineage),
        _row("dvc repro, nothing to do, this project", ours),
        _row("dvc repro, nothing to do, a plain project of the same size", theirs),
    ]
    print_table(HEADERS, rows)
    ratio = statistics.median(o / t for o, t in zip(ours, theirs, strict=True))
    targets = [
        Target("lineage of a run", statistics.median(lineage), "s", 2.0, "<="),
        Target("dvc repro with nothing to do, beside a plain project", ratio, "×", 1.5, "<="),
        Target("dvc repro with nothing to do", statistics.median(ours), "s", 5.0, "<="),
    ]
    write_results("tracking", targets, HEADERS, rows)


def _lineage_seconds(workspace: Path) -> float:
    """Of everything that train logs besides the model, its metrics and its reports."""
    project = Project(workspace)
    with _inside(workspace):
        started = time.perf_counter()
        with new_run(project, "measurement", {}):
            opening = time.perf_counter() - started
        with FeatureStore(project.features) as store:
            best, recipe, fingerprint = (
                read_head(project.best_head), store.recipe, store.fingerprint,
            )  # fmt: skip
        started = time.perf_counter()
        with open_training(project, best, recipe, fingerprint, 0):
            return time.perf_counter() - started - opening


def _plain_project(like: Path, target: Path, environment: dict[str, str]) -> None:
    """A DVC project of the same images and outputs, with nothing else to look at."""
    stages = yaml.safe_load((like / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    lock = yaml.safe_load((like / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    plain: dict[str, dict[str, Any]] = {}
    for name, stage in stages.items():
        outs = [entry["path"] for entry in lock[name]["outs"]]
        made = {out for earlier in plain.values() for out in earlier["outs"]}
        deps = [dep for dep in stage["deps"] if isinstance(dep, str) and dep in made]
        copies = " && ".join(
            f"mkdir -p {Path(out).parent} && cp -rL {like / out} {out}" for out in outs
        )
        plain[name] = {"cmd": copies, "deps": deps, "outs": outs}
    target.mkdir()
    text = yaml.safe_dump({"stages": plain}, sort_keys=False)
    (target / "dvc.yaml").write_text(text, encoding="utf-8")
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "repro", "-q"]):
        subprocess.run(command, cwd=target, env=environment, check=True)


def _repro_seconds(folder: Path, environment: dict[str, str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(
        ["dvc", "repro"], cwd=folder, env=environment, check=True, capture_output=True, text=True
    )
    seconds = time.perf_counter() - started
    assert "Running stage" not in done.stdout, done.stdout
    return seconds


def _environment(folder: Path) -> dict[str, str]:
    leads_elsewhere = ("MLFLOW_", "DVC_")
    kept = {name: v for name, v in os.environ.items() if not name.startswith(leads_elsewhere)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return {**kept, "PATH": path, "HEADSTART_CACHE": str(folder / "cache"), "DVC_NO_ANALYTICS": "1"}


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    with contextlib.chdir(folder):
        yield


def _row(name: str, seconds: list[float]) -> list[object]:
    values = (statistics.median(seconds), min(seconds), max(seconds))
    return [name, *(round(value, 2) for value in values)]


if __name__ == "__main__":
    main()
