"""Making a past run again, from its commit, and saying whether it came out the same.

Nothing is compared with itself: the feature cache, the study store and the tracking database are
scratch ones, and DVC runs every stage by force, without its run cache.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from packaging.requirements import Requirement

from headstart.common import files
from headstart.common.errors import TrackingError, one_line
from headstart.common.interrupts import run_command
from headstart.common.machine import library_version
from headstart.common.paths import Project, main_checkout
from headstart.common.secrets import without_secrets
from headstart.common.terminal import say
from headstart.tracking.dvc_state import DvcState
from headstart.tracking.lineage import library_versions
from headstart.tracking.store import open_store, sqlite_uri

# Outputs that hold a run's id or a time; their own contents are compared instead.
_NOT_COMPARED = ("models/run.json", "models/serving", "reports/metrics.json")
_PATCH = "uncommitted.patch"
# Not by PATH: the environment need not be activated.
_DVC = (sys.executable, "-m", "dvc")
_LOCKED = re.compile(r"^[A-Za-z0-9].*==.*$", re.MULTILINE)
# What the search found depends on the inputs; it is no cause itself.
_FOUND = "head."


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
        """The verdict as plain values."""
        items = [{**asdict(i), "same": i.is_same, "difference": i.difference} for i in self.items]
        return {"run_id": self.run_id, "commit": self.commit, "holds": self.holds, "items": items}

    def as_text(self) -> str:
        """The verdict for a person."""
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


def reproduce(project: Project, run_id: str) -> Verdict:
    """Make the run again and compare.

    Raises:
        TrackingError: the run is unknown or has no commit, its commit is not in this repository,
            its diff does not apply, its data cannot be had, or the pipeline fails.
    """
    store = open_store(project.root)
    then = _get(store.client, run_id)
    commit = then.data.tags.get("git.commit", "none")
    if commit == "none":
        raise TrackingError(f"a run can be made again from its commit, but {run_id} has none")
    with tempfile.TemporaryDirectory(prefix="headstart-reproduce-") as folder:
        scratch = Path(folder)
        provenance = _artifact(store.client, run_id, "provenance", folder)
        with _worktree(project.root, commit, scratch / "tree", provenance / _PATCH) as tree:
            _provide_source(main_checkout(project.root), tree)
            if (provenance / "splits.csv").is_file():
                # The commit may be older than the thresholds by which the run's images were split.
                shutil.copy2(provenance / "splits.csv", Project(tree).splits)
            environment = _scratch_environment(scratch)
            say(f"making the run again in {tree}", error=True)
            _run([*_DVC, "repro", "--force", "--no-run-cache"], tree, environment, shown=True)
            uri = environment["MLFLOW_TRACKING_URI"]
            now_id = files.read_json(tree / "models" / "run.json")["run_id"]
            now = _get(MlflowClient(uri), now_id)
            model_now = files.sha256_of_file(tree / "models" / "model.h5")
            order = DvcState(tree).output_paths()
            locked = list(_beside_the_lock(tree))
        model = _artifact(store.client, run_id, "model.h5", folder)
        result = Item("result", "model.h5", files.sha256_of_file(model), model_now)
        return Verdict(run_id, commit, (*locked, *_compare(then, now, order), result))


def write_verdict(path: Path, verdict: Verdict) -> None:
    """Write the verdict as JSON to `path`, and as text beside it."""
    files.write_json(path, verdict.as_json())
    files.write_text(path.with_suffix(".txt"), verdict.as_text() + "\n")


def log_verdict(project: Project, verdict: Verdict) -> None:
    """Keep a verdict on the run that `mlflow run -e reproduce` opened, if it did."""
    given = os.environ.get("MLFLOW_RUN_ID")
    if not given:
        return
    client = open_store(project.root).client
    client.log_dict(given, verdict.as_json(), "verdict.json")
    client.log_text(given, verdict.as_text(), "verdict.txt")
    tags = {"kind": "reproduction", "of": verdict.run_id, "holds": str(verdict.holds).lower()}
    for name, value in tags.items():
        client.set_tag(given, f"headstart.{name}", value)


def _beside_the_lock(tree: Path) -> Iterator[Item]:
    """Packages installed here in another version than the run's commit locks."""
    # The GPU's lock is constrained by this one.
    path = tree / "requirements" / "cpu.txt"
    if not path.is_file():
        return
    for line in _LOCKED.findall(path.read_text(encoding="utf-8")):
        required = Requirement(line.rstrip(" \\"))
        if required.marker is not None and not required.marker.evaluate():
            continue
        installed = library_version(required.name)
        if installed is not None and not required.specifier.contains(installed):
            locked = str(required.specifier).removeprefix("==")
            yield Item("version", f"locked.{required.name}", locked, installed)


def _artifact(client: MlflowClient, run_id: str, name: str, folder: str) -> Path:
    try:
        return Path(client.download_artifacts(run_id, name, folder))
    except (MlflowException, OSError) as error:
        raise TrackingError(
            f"a run can be made again from its artifacts, but {run_id} has no {name} that can be "
            f"read ({without_secrets(one_line(error, 120))}): choose a run that train has ended"
        ) from None


def _compare(then: Run, now: Run, order: Sequence[str]) -> Iterator[Item]:
    versions = {f"version.{name}": version for name, version in library_versions().items()}
    for name, version in sorted(versions.items()):
        if name in then.data.tags:
            yield Item("version", name, then.data.tags[name], version)
    params = _params(then)
    chosen = {name: value for name, value in params.items() if not name.startswith(_FOUND)}
    found = {name: value for name, value in params.items() if name.startswith(_FOUND)}
    yield from _items("param", chosen, _params(now))
    yield from _items("input", _hashes(then, order), _hashes(now, order))
    yield from _items("head", found, _params(now))
    yield from _items("metric", _metrics(then), _metrics(now))


def _params(run: Run) -> dict[str, str]:
    # `mlflow run -P` logs names without a section beside ours.
    params = sorted(run.data.params.items())
    return {name: value for name, value in params if "." in name or name == "seed"}


def _hashes(run: Run, order: Sequence[str]) -> dict[str, str]:
    """DVC's hashes in the pipeline's order, so that the first that differs is the cause."""
    names = {path: f"dvc.{path}.md5" for path in ("source", *order) if path not in _NOT_COMPARED}
    return {name: run.data.tags[name] for name in names.values() if name in run.data.tags}


def _metrics(run: Run) -> dict[str, str]:
    return {name: repr(value) for name, value in sorted(run.data.metrics.items())}


def _items(kind: str, then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[Item]:
    # A run that was only trained (`mlflow run -e train`) has no test metrics to compare.
    for name in then:
        yield Item(kind, name, then[name], now.get(name, "missing"))


def _get(client: MlflowClient, run_id: str) -> Run:
    try:
        run = client.get_run(run_id)
    except MlflowException:
        raise TrackingError(
            f"a run must be in the tracking store, but there is no run {run_id}: look it up in "
            "`mlflow ui`, or set MLFLOW_TRACKING_URI"
        ) from None
    if run.data.tags.get("headstart.kind") != "model":
        raise TrackingError(
            f"only the run of a trained model can be made again, but {run_id} is a "
            f"{run.data.tags.get('headstart.kind', 'run of something else')}"
        )
    return run


@contextmanager
def _worktree(root: Path, commit: str, tree: Path, patch: Path) -> Iterator[Path]:
    git = ["git", "-C", str(main_checkout(root))]
    _run([*git, "worktree", "add", "--detach", "--quiet", str(tree), commit], root, None)
    try:
        if patch.is_file():
            _run(["git", "apply", "--binary", str(patch)], tree, None)
        yield tree
    finally:
        subprocess.run([*git, "worktree", "remove", "--force", str(tree)], check=False)


def _provide_source(checkout: Path, tree: Path) -> None:
    """Bring the data source into the worktree: by DVC from its cache or a remote, else a copy."""
    own = checkout / ".dvc" / "config.local"
    if own.is_file():
        # Remotes, credentials and a cache elsewhere.
        shutil.copy2(own, tree / ".dvc" / "config.local")
    cache = _run([*_DVC, "cache", "dir"], checkout, dict(os.environ)).strip()
    _run([*_DVC, "cache", "dir", "--local", cache], tree, dict(os.environ))
    source = files.read_yaml(tree / "params.yaml")["data"]["source"]
    path = tree / source
    if "://" in source or path.exists():
        return
    tracked = tree / f"{source}.dvc"
    if tracked.is_file():
        command = [*_DVC, "pull" if _has_remote(tree) else "checkout", str(tracked)]
        _run(command, tree, dict(os.environ))
    elif (checkout / source).exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # A copy: what runs in the worktree must not be able to change the original.
        if (checkout / source).is_dir():
            shutil.copytree(checkout / source, path)
        else:
            shutil.copy2(checkout / source, path)
    else:
        raise TrackingError(
            f"the run's data source must be had, but {source} is neither in git nor in DVC nor in "
            f"{checkout}: restore it there, or `dvc pull`"
        )


def _has_remote(tree: Path) -> bool:
    return bool(_run([*_DVC, "remote", "list"], tree, dict(os.environ)).strip())


def _scratch_environment(scratch: Path) -> dict[str, str]:
    """The caller's environment with caches, state and database of its own."""
    leads_back = ("MLFLOW_", "DVC_", "PYTHONPATH")
    kept = {name: v for name, v in os.environ.items() if not name.startswith(leads_back)}
    return {
        **kept,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}",
        "HEADSTART_CACHE": str(scratch / "cache"),
        "HEADSTART_STATE": str(scratch / "state"),
        "MLFLOW_TRACKING_URI": sqlite_uri(scratch / "mlflow.db"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def _run(
    command: list[str], folder: Path, environment: dict[str, str] | None, *, shown: bool = False
) -> str:
    pipes = {} if shown else {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    done = run_command(command, cwd=folder, env=environment, shown=shown, **pipes)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip())[-1500:]
        raise TrackingError(
            f"making a run again needs `{' '.join(command[:5])}` to succeed, but it failed: {said}"
        )
    return done.stdout
