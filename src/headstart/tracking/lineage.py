"""Everything a run should know of where it came from, gathered without being asked for."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from headstart.common.machine import library_version, processor_name
from headstart.common.paths import Project
from headstart.common.secrets import without_secrets
from headstart.tracking.dvc_state import DvcState, Output, experiment_tags
from headstart.tracking.git_state import GitState, git_state

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


@dataclass(frozen=True)
class Lineage:
    """Where a run of one stage came from."""

    git: GitState
    inputs: list[Output]
    upstream: list[Output]
    source: Output | None
    tags: dict[str, str]


def gather(project: Project, stage: str, facts: dict[str, str]) -> Lineage:
    """Lineage of `stage` as it runs now; `facts` are further tags (fingerprint, study, seed)."""
    dvc = DvcState(project.root)
    # Stages write these: they are kept with the run, and do not make its code another one.
    written = {"dvc.lock", project.splits.relative_to(project.root).as_posix()}
    git = git_state(project.root, ignoring={*written, *dvc.output_paths()})
    upstream = dvc.outputs_before(stage)
    source = dvc.source()
    tags = {
        **_git_tags(git),
        # Reports upstream are results, not what a model came from.
        **{f"dvc.{o.path}.md5": o.md5 for o in upstream if not o.path.startswith("reports/")},
        **({"dvc.source.md5": source.md5, "dvc.source": source.path} if source else {}),
        **experiment_tags(),
        **_machine_tags(),
        **facts,
    }
    clean = {key: without_secrets(value) for key, value in tags.items()}
    return Lineage(git, dvc.inputs(stage), upstream, source, clean)


def flatten(sections: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested params as `section.field` → text; lists as JSON-like text; None as `none`."""
    flat: dict[str, str] = {}
    for key, value in sections.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = without_secrets("none" if value is None else str(value))
    return flat


def library_versions() -> dict[str, str]:
    """Versions of the libraries that matter, of those that are installed."""
    return {name: version for name in _LIBRARIES if (version := library_version(name))}


def _git_tags(git: GitState) -> dict[str, str]:
    if git.commit is None:
        return {"git.commit": "none", "git.dirty": "unknown"}
    tags = {
        "git.commit": git.commit,
        "git.dirty": str(git.is_dirty).lower(),
        # The name under which MLflow's own pages show the commit.
        "mlflow.source.git.commit": git.commit,
    }
    return {**tags, "git.branch": git.branch} if git.branch else tags


def _machine_tags() -> dict[str, str]:
    versions = {f"version.{name}": version for name, version in library_versions().items()}
    return {
        **versions,
        "version.python": platform.python_version(),
        "machine.platform": platform.platform(terse=True),
        "machine.processor": processor_name(),
        "machine.cores": str(os.cpu_count()),
        "machine.memory_gb": f"{psutil.virtual_memory().total / 2**30:.0f}",
        **({"machine.gpu": gpus} if (gpus := _gpus()) else {}),
    }


def _gpus() -> str:
    """Models of the NVIDIA GPUs as their driver lists them, without a process or a library."""
    models = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        text = path.read_text(encoding="utf-8", errors="replace")
        models += [line.split(":", 1)[1].strip() for line in text.splitlines() if "Model:" in line]
    return ", ".join(models)
