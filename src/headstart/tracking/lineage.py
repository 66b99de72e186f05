"""Where a run came from: the code that git knows, the data that DVC knows, and this machine.

DVC's two files, dvc.yaml and dvc.lock, are public formats and are read as such: importing DVC costs
a second in every stage.
"""

import hashlib
import os
import platform
import subprocess
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from headstart.common.errors import TrackingError
from headstart.common.files import read_yaml
from headstart.common.machine import library_version, processor_name
from headstart.common.paths import Project

# Untracked files count as source when they lie here; images and results of others never do.
_SOURCES = ("src", "data/sources", ":(glob)data/*.dvc")
_MAX_UNTRACKED_BYTES = 1_000_000
_LIBRARIES = (
    "headstart",
    "tensorflow",
    "tensorflow-cpu",
    "keras",
    "numpy",
    "h5py",
    "onnxruntime",
    "openvino",
    "optuna",
    "mlflow",
    "dvc",
    "pillow",
    "scikit-learn",
)
_EXPERIMENT_TAGS = {
    "dvc.exp_name": "DVC_EXP_NAME",
    "dvc.stage": "DVC_STAGE",
    "dvc.baseline_rev": "DVC_EXP_BASELINE_REV",
}


@dataclass(frozen=True)
class GitState:
    """The code a run was made with. `diff` is a binary git patch against `commit`."""

    commit: str | None
    branch: str | None
    diff: str


def git_state(root: Path, *, ignoring: Collection[str] = ()) -> GitState:
    """Compare every byte of the workspace at `root` with HEAD, leaving out the paths in `ignoring`.

    Bytes, not time stamps: in the copies that DVC makes for queued and temporary experiments, git's
    own index can call an edited file of the same length clean. Outside of a repository, or before
    the first commit, everything is None and the diff empty.

    Raises:
        TrackingError: git cannot read the repository.
    """
    commit = _git(root, "rev-parse", "--verify", "-q", "HEAD").strip()
    if not commit:
        return GitState(None, None, "")
    branch = _git(root, "symbolic-ref", "--short", "-q", "HEAD").strip() or None
    objects = _git(root, "rev-parse", "--git-path", "objects").strip()
    listed = _git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *_SOURCES)
    untracked = [
        name
        for name in listed.split("\0")
        if name and (root / name).is_file() and (root / name).stat().st_size < _MAX_UNTRACKED_BYTES
    ]
    with tempfile.TemporaryDirectory() as folder:
        # A scratch index and object store: nothing of the user's repository is touched.
        scratch = {
            "GIT_INDEX_FILE": str(Path(folder) / "index"),
            "GIT_OBJECT_DIRECTORY": folder,
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str((root / objects).resolve()),
        }
        _git(root, "read-tree", "HEAD", scratch=scratch)
        _git(root, "add", "--update", "--", ".", scratch=scratch)
        if untracked:
            _git(root, "add", "--", *untracked, scratch=scratch)
        options = ("--cached", "--binary", "--no-color", "--no-ext-diff", "--no-renames")
        excluded = [f":(exclude){path}" for path in sorted(ignoring)]
        diff = _git(root, "diff", *options, "HEAD", "--", ".", *excluded, scratch=scratch)
    return GitState(commit, branch, diff)


def _git(root: Path, *arguments: str, scratch: dict[str, str] | None = None) -> str:
    """Return git's standard output.

    With a `scratch` index git has to succeed; without, the empty string stands for its "no".
    """
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, env=os.environ | (scratch or {}))
    except OSError:
        return ""
    if done.returncode != 0:
        if scratch is None:
            return ""
        raise TrackingError(
            f"the workspace must be comparable with git's HEAD, but `git {arguments[0]}` failed in "
            f"{root}: {done.stderr.decode(errors='replace').strip()}: repair the repository, "
            "beginning with what `git status` says"
        )
    return done.stdout.decode(errors="surrogateescape")


@dataclass(frozen=True)
class DvcOutput:
    """One output of a stage, with the hash DVC gave it (`….dir` for a folder)."""

    path: str
    stage: str
    md5: str


@dataclass(frozen=True)
class DvcState:
    """dvc.yaml and dvc.lock of one workspace, as they are at this moment."""

    root: Path

    @cached_property
    def _stages(self) -> dict[str, dict[str, Any]]:
        return _stages_in(self.root / "dvc.yaml")

    @cached_property
    def _locked(self) -> dict[str, dict[str, Any]]:
        return _stages_in(self.root / "dvc.lock")

    def output_paths(self) -> list[str]:
        """Return the paths of every stage's outputs, in their order, metrics and plots included."""
        return [path for stage in self._stages.values() for path in _outputs(stage)]

    def inputs(self, stage: str) -> list[DvcOutput]:
        """Return the outputs of other stages that `stage` reads, with their hashes."""
        deps = {str(path) for path in self._stages.get(stage, {}).get("deps", [])}
        return [output for output in self.outputs_before(stage) if output.path in deps]

    def outputs_before(self, stage: str) -> list[DvcOutput]:
        """Return the outputs of all stages that `stage` needs, directly or not, in their order.

        dvc.lock is rewritten after each stage, so it knows the outputs of those upstream; where
        a file has another size than it says (a stage run by hand), the file itself is hashed.
        """
        producer = {path: name for name, s in self._stages.items() for path in _outputs(s)}
        upstream: set[str] = set()
        waiting = [stage]
        while waiting:
            for path in self._stages.get(waiting.pop(), {}).get("deps", []):
                name = producer.get(str(path))
                if name and name not in upstream:
                    upstream.add(name)
                    waiting.append(name)
        found = []
        for name in filter(upstream.__contains__, self._stages):
            for entry in self._locked.get(name, {}).get("outs", []):
                path, md5 = self.root / str(entry["path"]), entry.get("md5")
                if path.is_file() and path.stat().st_size != entry.get("size"):
                    md5 = md5_of_file(path)
                if md5:
                    found.append(DvcOutput(str(entry["path"]), name, str(md5)))
        return found

    def source(self) -> DvcOutput | None:
        """Return the data source: the first dependency of the fetch stage, as DVC hashed it."""
        for entry in self._locked.get("fetch", {}).get("deps", []):
            if not str(entry["path"]).startswith("src/"):
                # For an address DVC keeps what the server says of it instead of an md5.
                found = (entry.get(name) for name in ("md5", "etag", "checksum"))
                digest = str(next(filter(None, found), "")).strip('"')
                return DvcOutput(str(entry["path"]), "source", digest)
        return None


def _stages_in(path: Path) -> dict[str, dict[str, Any]]:
    content = read_yaml(path) if path.is_file() else None
    return dict(content.get("stages") or {}) if isinstance(content, dict) else {}


def _outputs(stage: dict[str, Any]) -> Iterator[str]:
    for kind in ("outs", "metrics", "plots"):
        for entry in stage.get(kind, []):
            yield next(iter(entry)) if isinstance(entry, dict) else str(entry)


def md5_of_file(path: Path) -> str:
    """Return the hash by which DVC knows a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@dataclass(frozen=True)
class Lineage:
    """Where a run of one stage came from.

    Attributes:
        inputs: what the stage read of other stages' outputs.
        source: the data source, where DVC knows it.
        tags: all of it as MLflow tags.
    """

    git: GitState
    inputs: list[DvcOutput]
    source: DvcOutput | None
    tags: dict[str, str]


def gather_lineage(project: Project, stage: str, tags: dict[str, str]) -> Lineage:
    """Return the lineage of `stage` as it runs now, with `tags` (fingerprint, study, seed) added.

    Raises:
        TrackingError: git cannot read the repository.
    """
    dvc = DvcState(project.root)
    source = dvc.source()
    # Stages write these: they are kept with the run, and do not make its code another one.
    written = {"dvc.lock", project.splits.relative_to(project.root).as_posix()}
    git = git_state(project.root, ignoring={*written, *dvc.output_paths()})
    gpus = []
    # As NVIDIA's driver lists them, without a process or a library.
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        gpus += [line.split(":", 1)[1].strip() for line in lines if "Model:" in line]
    found = {
        "git.commit": git.commit or "none",
        "git.dirty": "unknown" if git.commit is None else str(bool(git.diff)).lower(),
        # The name under which MLflow's own pages show the commit.
        "mlflow.source.git.commit": git.commit,
        "git.branch": git.branch,
        # Reports upstream are results, not what a model came from.
        **{
            f"dvc.{output.path}.md5": output.md5
            for output in dvc.outputs_before(stage)
            if not output.path.startswith("reports/")
        },
        **({"dvc.source.md5": source.md5, "dvc.source": source.path} if source else {}),
        **{tag: os.environ.get(name) or None for tag, name in _EXPERIMENT_TAGS.items()},
        **{f"version.{name}": version for name, version in library_versions().items()},
        "version.python": platform.python_version(),
        "machine.platform": platform.platform(terse=True),
        "machine.processor": processor_name(),
        "machine.cores": str(os.cpu_count()),
        "machine.memory_gb": f"{psutil.virtual_memory().total / 2**30:.0f}",
        "machine.gpu": ", ".join(gpus) or None,
        **tags,
    }
    known = {key: value for key, value in found.items() if value is not None}
    return Lineage(git, dvc.inputs(stage), source, known)


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that matter, of those that are installed."""
    return {name: version for name in _LIBRARIES if (version := library_version(name))}
