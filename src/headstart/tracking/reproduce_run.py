"""A past run made again from its commit, and whether it comes out the same.

Nothing is compared with itself: the feature cache, the study store and the tracking database are
scratch ones, and DVC runs every stage by force, without its run cache.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from packaging.requirements import Requirement

from headstart.common import files
from headstart.common.errors import TrackingError
from headstart.common.interrupts import run_command
from headstart.common.machine import library_version
from headstart.common.paths import Project, main_checkout, sqlite_uri
from headstart.common.terminal import say
from headstart.tracking.lineage import DvcState, library_versions
from headstart.tracking.named_runs import named_run
from headstart.tracking.runs import Run, open_given_run, read_run_id
from headstart.tracking.store import TrackingStore, open_store

# Outputs that hold a run's id or a time; their own contents are compared instead.
_NOT_COMPARED = ("models/run.json", "models/serving", "reports/metrics.json")
# Not by PATH: the environment need not be activated.
_DVC = (sys.executable, "-m", "dvc")
_LOCKED = re.compile(r"^[A-Za-z0-9].*==.*$", re.MULTILINE)


@dataclass(frozen=True)
class Item:
    """One thing compared: an input's hash, a metric, a param, a version, the model."""

    kind: str
    name: str
    then: str
    now: str

    @property
    def is_same(self) -> bool:
        return self.then == self.now

    @property
    def difference(self) -> str:
        """By how much, where both are numbers."""
        try:
            return f"{float(self.now) - float(self.then):+.3g}"
        except ValueError:
            return ""


@dataclass(frozen=True)
class Verdict:
    """Whether a run came out the same, and everything that was compared."""

    run_id: str
    commit: str
    items: tuple[Item, ...]

    @property
    def holds(self) -> bool:
        """Versions of libraries are causes, not results: they do not decide."""
        return all(item.is_same for item in self.items if item.kind != "version")

    @property
    def causes(self) -> list[Item]:
        """What differs among the inputs: libraries, params, then data in the pipeline's order."""
        kinds = ("version", "param", "input")
        return [item for item in self.items if item.kind in kinds and not item.is_same]

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        items = [{**asdict(i), "same": i.is_same, "difference": i.difference} for i in self.items]
        return {"run_id": self.run_id, "commit": self.commit, "holds": self.holds, "items": items}

    def as_text(self) -> str:
        """Return the verdict for a person."""
        different = [item for item in self.items if not item.is_same]
        lines = [f"run {self.run_id} at commit {self.commit[:12]}"]
        if self.holds:
            lines.append(f"identical: {len(self.items) - len(different)} of {len(self.items)}")
        else:
            lines.append(f"DIFFERENT in {len(different)} of {len(self.items)}")
        for item in different:
            by = f" ({item.difference})" if item.difference else ""
            lines.append(f"  {item.kind:<8} {item.name}: {item.then} then, {item.now} now{by}")
        if self.causes and not self.holds:
            lines.append(f"first cause: {self.causes[0].kind} {self.causes[0].name}")
        return "\n".join(lines)


def reproduce_run(project: Project, name: str) -> Verdict:
    """Make a run, named as `named_run` takes it, again from its commit, and compare.

    Where `mlflow run -e reproduce` opened a run, the verdict is kept in it.

    Raises:
        TrackingError: the run is unknown or has no commit, its commit is not in this repository,
            its diff does not apply, its data cannot be had, or the pipeline fails; or
            MLFLOW_RUN_ID names a run that has ended.
    """
    given, store = open_given_run(project), open_store(project.root)
    then = named_run(project, store, name)
    run_id = then.info.run_id
    kind, commit = (then.data.tags.get(tag) for tag in ("headstart.kind", "git.commit"))
    if kind != "model":
        raise TrackingError(
            f"only the run of a trained model can be made again, but {run_id} is a "
            f"{kind or 'run of something else'}"
        )
    if commit in (None, "none"):
        raise TrackingError(f"a run can be made again from its commit, but {run_id} has none")
    with tempfile.TemporaryDirectory(prefix="headstart-reproduce-") as folder:
        scratch = Path(folder)
        provenance = _artifact(store, run_id, "provenance", scratch)
        leads_back = ("MLFLOW_", "DVC_", "PYTHONPATH")
        environment = {k: v for k, v in os.environ.items() if not k.startswith(leads_back)}
        environment |= {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}",
            "HEADSTART_CACHE": str(scratch / "cache"),
            "HEADSTART_STATE": str(scratch / "state"),
            "MLFLOW_TRACKING_URI": sqlite_uri(scratch / "mlflow.db"),
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        with _worktree(project.root, commit, scratch / "tree", provenance) as tree:
            say(f"making the run again in {tree.root}", error=True)
            command = [*_DVC, "repro", "--force", "--no-run-cache"]
            _run(command, tree.root, environment, shown=True)
            client = MlflowClient(environment["MLFLOW_TRACKING_URI"])
            now = client.get_run(read_run_id(tree.run))
            # What may be a cause comes first, in the pipeline's order: packages installed here in
            # another version than the run's commit locks (the GPU's lock is constrained by this
            # one), libraries, params, data; then what the search found, and metrics.
            items = []
            lock = tree.root / "requirements" / "cpu.txt"
            for line in _LOCKED.findall(lock.read_text("utf-8") if lock.is_file() else ""):
                required = Requirement(line.rstrip(" \\"))
                installed = library_version(required.name)
                if (
                    installed is not None
                    and (required.marker is None or required.marker.evaluate())
                    and not required.specifier.contains(installed)
                ):
                    locked = str(required.specifier).removeprefix("==")
                    items.append(Item("version", f"locked.{required.name}", locked, installed))
            tags, tags_now = then.data.tags, now.data.tags
            versions = {f"version.{name}": v for name, v in sorted(library_versions().items())}
            # `mlflow run -P` logs names without a section beside ours.
            params = {n: v for n, v in sorted(then.data.params.items()) if "." in n or n == "seed"}
            # It depends on the inputs, and is no cause itself.
            found = {name: params.pop(name) for name in list(params) if name.startswith("head.")}
            paths = ["source", *DvcState(tree.root).output_paths()]
            hashes = [f"dvc.{path}.md5" for path in paths if path not in _NOT_COMPARED]
            metrics, metrics_now = (
                {name: repr(value) for name, value in sorted(run.data.metrics.items())}
                for run in (then, now)
            )
            for kind, names, before, after in (
                ("version", versions, tags, versions),
                ("param", params, params, now.data.params),
                ("input", hashes, tags, tags_now),
                ("head", found, found, now.data.params),
                ("metric", metrics, metrics, metrics_now),
            ):
                # A run that was only trained (`mlflow run -e train`) has no test metrics.
                known = [name for name in names if name in before]
                items += [Item(kind, n, before[n], after.get(n, "missing")) for n in known]
            model_now = files.sha256_of_file(tree.model)
        model_then = files.sha256_of_file(_artifact(store, run_id, "model.h5", scratch))
    items.append(Item("result", "model.h5", model_then, model_now))
    verdict = Verdict(run_id, commit, tuple(items))
    if given is not None:
        _keep(verdict, given, str(then.info.run_name))
    return verdict


def _keep(verdict: Verdict, run: Run, name: str) -> None:
    """Write the verdict on a run of that name into the run that MLflow opened for it."""
    run.log_text(json.dumps(verdict.as_json(), indent=2), "verdict.json")
    run.log_text(verdict.as_text(), "verdict.txt")
    holds = str(verdict.holds).lower()
    run.set_tags(
        {
            "mlflow.runName": f"{name} · made again",
            "headstart.kind": "reproduction",
            "headstart.of": verdict.run_id,
            "headstart.holds": holds,
        }
    )
    # Without what differs, which may be long: verdict.txt has it.
    outcome = verdict.as_text().splitlines()[1]
    run.describe(f"Run {verdict.run_id} made again from its commit: {outcome}.")


def _artifact(store: TrackingStore, run_id: str, name: str, folder: Path) -> Path:
    path = store.artifact(run_id, name, folder)
    if path is None:
        raise TrackingError(
            f"a run can be made again from its artifacts, but {run_id} has no {name} that can be "
            "read: choose a run that train has finished"
        )
    return path


@contextmanager
def _worktree(root: Path, commit: str, tree: Path, provenance: Path) -> Iterator[Project]:
    """Check a run's commit out, with its uncommitted changes, its splits and its data source.

    The data source comes by DVC from its cache or a remote, else it is copied.
    """
    checkout = main_checkout(root)
    own = dict(os.environ)
    git = ["git", "-C", str(checkout)]
    _run([*git, "worktree", "add", "--detach", "--quiet", str(tree), commit], root, own)
    try:
        if (provenance / "uncommitted.patch").is_file():
            patch = str(provenance / "uncommitted.patch")
            _run(["git", "apply", "--binary", patch], tree, own)
        if (checkout / ".dvc" / "config.local").is_file():
            # Remotes, credentials and a cache elsewhere.
            shutil.copy2(checkout / ".dvc" / "config.local", tree / ".dvc" / "config.local")
        cache = _run([*_DVC, "cache", "dir"], checkout, own).strip()
        _run([*_DVC, "cache", "dir", "--local", cache], tree, own)
        source = files.read_yaml(tree / "params.yaml")["data"]["source"]
        path, original, tracked = tree / source, checkout / source, tree / f"{source}.dvc"
        if "://" in source or path.exists():
            pass
        elif tracked.is_file():
            has_remote = bool(_run([*_DVC, "remote", "list"], tree, own).strip())
            _run([*_DVC, "pull" if has_remote else "checkout", str(tracked)], tree, own)
        elif original.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            # A copy: what runs in the worktree must not be able to change the original.
            (shutil.copytree if original.is_dir() else shutil.copy2)(original, path)
        else:
            raise TrackingError(
                f"the run's data source must be had, but {source} is neither in git nor in DVC nor "
                f"in {checkout}: restore it there, or `dvc pull`"
            )
        if (provenance / "splits.csv").is_file():
            # The commit may be older than the thresholds by which the run's images were split.
            shutil.copy2(provenance / "splits.csv", Project(tree).splits)
        yield Project(tree)
    finally:
        subprocess.run([*git, "worktree", "remove", "--force", str(tree)], check=False)


def _run(
    command: list[str], folder: Path, environment: dict[str, str], *, shown: bool = False
) -> str:
    pipes = {} if shown else {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    done = run_command(command, cwd=folder, env=environment, shown=shown, **pipes)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip())[-1500:]
        raise TrackingError(
            f"making a run again needs `{' '.join(command[:5])}` to succeed, but it failed: {said}"
        )
    return done.stdout
