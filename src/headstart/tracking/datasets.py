"""A dataset source that MLflow can show and resolve: a path at a revision, in DVC's hands."""

import hashlib
from pathlib import Path
from typing import Any

from mlflow.data.dataset_source import DatasetSource
from mlflow.data.meta_dataset import MetaDataset

from headstart.common.errors import TrackingError
from headstart.common.secrets import without_secrets
from headstart.tracking.dvc_state import Output

# MLflow's own limit on the length of a digest.
_MAX_DIGEST = 36


class DvcDatasetSource(DatasetSource):
    """`path` as it is at git revision `rev`, with DVC's md5."""

    def __init__(self, path: str, rev: str | None, md5: str) -> None:
        self.path = path
        self.rev = rev
        self.md5 = md5

    @staticmethod
    def _get_source_type() -> str:
        return "dvc"

    def load(self, dst_path: str | None = None) -> str:
        """Fetch the data with DVC into `dst_path` (default: a folder named after the hash)."""
        from dvc.repo import Repo

        target = Path(dst_path or f"dvc-{self.md5[:12]}")
        Repo.get(".", self.path, out=str(target), rev=self.rev)
        if target.is_file() and (found := _md5_of_file(target)) != self.md5:
            raise TrackingError(
                f"{self.path} must have the md5 {self.md5}, but at revision {self.rev} it has "
                f"{found}: the run was made with data that this commit's dvc.lock does not name"
            )
        return str(target)

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:  # noqa: ARG004 (the name is MLflow's)
        return False

    @classmethod
    def _resolve(cls, raw_source: Any) -> "DvcDatasetSource":
        return cls.from_dict(raw_source)

    def to_dict(self) -> dict[str, Any]:
        return {"path": self.path, "rev": self.rev, "md5": self.md5}

    @classmethod
    def from_dict(cls, source_dict: dict[str, Any]) -> "DvcDatasetSource":
        return cls(source_dict["path"], source_dict.get("rev"), source_dict["md5"])


def _md5_of_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def dataset_values(output: Output, rev: str | None, context: str) -> dict[str, str]:
    """An MLflow dataset input for an output of DVC, as plain values.

    `context` is training, validation or test.

    MLflow keeps one context a dataset and run, so what is not for training says so in its name.
    """
    path = without_secrets(output.path)
    name = path if context == "training" else f"{path} ({context})"
    source = DvcDatasetSource(path, rev, output.md5)
    # MLflow leaves a property abstract in a class that is meant to be instantiated.
    dataset = MetaDataset(  # type: ignore[abstract]
        source, name=name, digest=output.md5[:_MAX_DIGEST]
    )._to_mlflow_entity()
    return {
        "name": dataset.name,
        "digest": dataset.digest,
        "source_type": dataset.source_type,
        "source": dataset.source,
        "context": context,
    }
