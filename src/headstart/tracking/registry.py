"""The model registry: versions that say what they are, and who is champion, since when, and why."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

from headstart.common.errors import TrackingError, one_line
from headstart.common.secrets import without_secrets
from headstart.tracking.outbox import MODEL_TAG
from headstart.tracking.store import TrackingStore, global_store

CHAMPION = "champion"
CHALLENGER = "challenger"
_HISTORY_TAG = "champion.history"
_SHA256_TAG = "model.sha256"
_ROLLED_BACK = "rolled back from version "


@dataclass(frozen=True)
class Reign:
    """From when a version was champion, and why it became so."""

    version: str
    since: str
    why: str


@dataclass(frozen=True)
class Registry:
    """The versions of one registered model."""

    store: TrackingStore
    name: str

    @property
    def _client(self) -> MlflowClient:
        return self.store.client

    def version_of(self, model_sha256: str) -> ModelVersion | None:
        """The version that holds a model file of this hash, if there is one."""
        query = f"name='{self.name}' and tags.`{_SHA256_TAG}` = '{model_sha256}'"
        found = self._client.search_model_versions(query)
        return max(found, key=lambda version: int(version.version)) if found else None

    def add(
        self, run_id: str, model_sha256: str, description: str, tags: Mapping[str, str]
    ) -> ModelVersion:
        """Register the model of a run as a new version.

        Raises:
            TrackingError: the run has no logged model.
        """
        run = self._client.get_run(run_id)
        model_id = run.data.tags.get(MODEL_TAG)
        if not model_id:
            raise TrackingError(
                f"a version needs the run's logged model, but run {run_id} has none: run "
                "`headstart sync`, or log it with `dvc repro --force --single-item package`"
            )
        self._create_registered_model()
        # For a database MLflow looks the model up in its global store, whatever the client's is.
        with global_store(self.store.uri):
            return self._client.create_model_version(
                self.name,
                source=f"models:/{model_id}",
                run_id=run_id,
                model_id=model_id,
                description=without_secrets(description),
                tags={
                    _SHA256_TAG: model_sha256,
                    **{key: without_secrets(value) for key, value in tags.items()},
                },
            )

    def holder(self, alias: str) -> ModelVersion | None:
        """The version that has the alias, if any."""
        try:
            return self._client.get_model_version_by_alias(self.name, alias)
        except MlflowException as error:
            if error.error_code in (
                ErrorCode.Name(RESOURCE_DOES_NOT_EXIST),
                "INVALID_PARAMETER_VALUE",
            ):
                return None
            raise

    def challenge(self, version: str) -> None:
        """Give a version the challenger alias."""
        self._client.set_registered_model_alias(self.name, CHALLENGER, version)

    def crown(self, version: str, why: str) -> None:
        """Make a version the champion and write it into the history."""
        self._get(version)
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        history = [*self.history(), Reign(version, now, without_secrets(why))]
        self._client.set_registered_model_alias(self.name, CHAMPION, version)
        challenger = self.holder(CHALLENGER)
        if challenger is not None and str(challenger.version) == version:
            self._client.delete_registered_model_alias(self.name, CHALLENGER)
        # MLflow keeps 5,000 characters a tag: the oldest reigns are left out beyond that.
        while len(text := json.dumps([asdict(r) for r in history])) > 5000:
            history = history[1:]
        self._client.set_registered_model_tag(self.name, _HISTORY_TAG, text)
        self._client.set_model_version_tag(self.name, version, "champion.since", now)
        self._client.set_model_version_tag(self.name, version, "champion.why", why[:5000])

    def history(self) -> list[Reign]:
        """All reigns, oldest first.

        Raises:
            TrackingError: the tag that holds them is not as it was written.
        """
        try:
            tags = self._client.get_registered_model(self.name).tags
        except MlflowException as error:
            # Anything else must not look like an empty history, which the next reign would replace.
            if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                raise
            return []
        text = tags.get(_HISTORY_TAG, "[]")
        try:
            return [Reign(**reign) for reign in json.loads(text)]
        except (ValueError, TypeError) as error:
            raise TrackingError(
                f"the tag {_HISTORY_TAG} of the registered model {self.name!r} must be a history "
                f"as `headstart promote` writes it, but {one_line(error, 80)}: correct it in "
                "`mlflow ui`, or delete it to begin a new history"
            ) from None

    def rollback(self) -> tuple[str, str]:
        """Give the champion alias back to the previous champion; returns (from, to).

        Raises:
            TrackingError: there is no champion, or none before it.
        """
        now = self.holder(CHAMPION)
        if now is None:
            raise TrackingError(
                f"a rollback needs a champion, but {self.name!r} has none: run `dvc repro`"
            )
        current = str(now.version)
        earlier = _before(self.history(), current)
        if not earlier:
            raise TrackingError(
                f"a rollback needs an earlier champion, but version {current} of {self.name!r} is "
                "the first: name a version with `headstart promote VERSION`"
            )
        self.crown(earlier[-1], f"{_ROLLED_BACK}{current}")
        return current, earlier[-1]

    def artifact(self, version: ModelVersion, name: str, folder: Path) -> Path | None:
        """Download an artifact of the version's run into `folder`; None if it is not there."""
        try:
            return Path(self._client.download_artifacts(str(version.run_id), name, str(folder)))
        except (MlflowException, OSError):
            return None

    def _get(self, version: str) -> ModelVersion:
        try:
            return self._client.get_model_version(self.name, version)
        except MlflowException:
            known = self._client.search_model_versions(f"name='{self.name}'")
            listed = ", ".join(sorted((str(v.version) for v in known), key=int)) or "none"
            raise TrackingError(
                f"a version of {self.name!r} must exist, but got {version!r}; there are: {listed}"
            ) from None

    def _create_registered_model(self) -> None:
        try:
            self._client.create_registered_model(
                self.name, description="Image classifiers of this project, made by `dvc repro`."
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise


def _before(history: Sequence[Reign], current: str) -> list[str]:
    """Champions before the current one, oldest first, without those that were rolled back from."""
    left = {r.why.removeprefix(_ROLLED_BACK) for r in history if r.why.startswith(_ROLLED_BACK)}
    return [r.version for r in history if r.version != current and r.version not in left]
