"""What DVC knows of a stage's inputs: the graph of dvc.yaml and the hashes of dvc.lock.

Read from the two files, which are DVC's public formats; DVC itself is not imported, because
importing it costs a second in every stage.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from headstart.common.files import read_yaml

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Output:
    """One output of a stage, with the hash DVC gave it (`….dir` for a folder)."""

    path: str
    stage: str
    md5: str


@dataclass(frozen=True)
class DvcState:
    """dvc.yaml and dvc.lock of one workspace, as they are at this moment."""

    root: Path

    @cached_property
    def stages(self) -> dict[str, dict[str, Any]]:
        return dict(_load_yaml(self.root / "dvc.yaml").get("stages") or {})

    @cached_property
    def _locked(self) -> dict[str, dict[str, Any]]:
        return dict(_load_yaml(self.root / "dvc.lock").get("stages") or {})

    def output_paths(self) -> list[str]:
        """Paths of every output of every stage, in their order, metrics and plots included."""
        return [path for stage in self.stages.values() for path in _outputs(stage)]

    def upstream(self, stage: str) -> list[str]:
        """Names of the stages that `stage` needs, directly or not, in the order of dvc.yaml."""
        producer = {path: name for name, s in self.stages.items() for path in _outputs(s)}
        found: set[str] = set()
        waiting = [stage]
        while waiting:
            for path in self.stages.get(waiting.pop(), {}).get("deps", []):
                name = producer.get(str(path))
                if name and name not in found:
                    found.add(name)
                    waiting.append(name)
        return [name for name in self.stages if name in found]

    def inputs(self, stage: str) -> list[Output]:
        """Outputs of other stages that `stage` reads, with their hashes."""
        deps = {str(path) for path in self.stages.get(stage, {}).get("deps", [])}
        return [output for output in self.outputs_before(stage) if output.path in deps]

    def outputs_before(self, stage: str) -> list[Output]:
        """Outputs of all stages upstream of `stage`.

        dvc.lock is rewritten after each stage, so it knows the outputs of those upstream; where
        a file has another size than it says (a stage run by hand), the file itself is hashed.
        """
        found = []
        for name in self.upstream(stage):
            for entry in self._locked.get(name, {}).get("outs", []):
                md5 = self._current_md5(entry)
                if md5:
                    found.append(Output(str(entry["path"]), name, md5))
        return found

    def source(self) -> Output | None:
        """The data source: the first dependency of the fetch stage, as DVC hashed it."""
        for entry in self._locked.get("fetch", {}).get("deps", []):
            if not str(entry["path"]).startswith("src/"):
                # For an address DVC keeps what the server says of it instead of an md5.
                found = (entry.get(name) for name in ("md5", "etag", "checksum"))
                digest = str(next(filter(None, found), "")).strip('"')
                return Output(str(entry["path"]), "source", digest)
        return None

    def _current_md5(self, entry: dict[str, Any]) -> str | None:
        path = self.root / str(entry["path"])
        md5 = entry.get("md5")
        if path.is_file() and path.stat().st_size != entry.get("size"):
            return _md5_of_file(path)
        return str(md5) if md5 else None


def experiment_tags() -> dict[str, str]:
    """What DVC says of the experiment that is running, from the environment it sets."""
    names = {
        "dvc.exp_name": "DVC_EXP_NAME",
        "dvc.stage": "DVC_STAGE",
        "dvc.baseline_rev": "DVC_EXP_BASELINE_REV",
    }
    return {tag: os.environ[name] for tag, name in names.items() if os.environ.get(name)}


def _outputs(stage: dict[str, Any]) -> Iterator[str]:
    for kind in ("outs", "metrics", "plots"):
        for entry in stage.get(kind, []):
            yield next(iter(entry)) if isinstance(entry, dict) else str(entry)


def _load_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = read_yaml(path)
    return content if isinstance(content, dict) else {}


def _md5_of_file(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
