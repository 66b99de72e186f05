"""MLflow's plug-in for the dataset inputs of a run, which loads them by DVC.

A module of its own: importing MLflow loads it, by the entry point in pyproject.toml.
"""

from pathlib import Path
from typing import Any

from mlflow.data.dataset_source import DatasetSource

from headstart.common.errors import TrackingError
from headstart.tracking.lineage import md5_of_file


class DvcDatasetSource(DatasetSource):
    """A dataset source that MLflow can show and load: `path` at git revision `rev`, by DVC."""

    TYPE = "dvc"

    def __init__(self, path: str, rev: str | None, md5: str) -> None:
        self.path = path
        self.rev = rev
        self.md5 = md5

    @staticmethod
    def _get_source_type() -> str:
        return DvcDatasetSource.TYPE

    def load(self, dst_path: str | None = None) -> str:
        """Fetch the data with DVC into `dst_path` (default: a folder named after the hash)."""
        from dvc.repo import Repo

        target = Path(dst_path or f"dvc-{self.md5[:12]}")
        Repo.get(".", self.path, out=str(target), rev=self.rev)
        if target.is_file() and (found := md5_of_file(target)) != self.md5:
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
