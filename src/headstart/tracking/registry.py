"""The model registry: versions that say what they are, and who is champion, since when, and why."""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

from headstart.common.errors import TrackingError, one_line
from headstart.common.paths import Project
from headstart.common.secrets import without_secrets
from headstart.tracking.offline_runs import MODEL_TAG
from headstart.tracking.store import (
    TrackingStore,
    answering,
    global_store,
    open_store,
    own_database,
    tracking_uri,
)

CHAMPION = "champion"
CHALLENGER = "challenger"
_HISTORY_TAG = "champion.history"
CHAMPION_SINCE = "champion.since"
SHA256_TAG = "model.sha256"
_ROLLED_BACK = "rolled back from version "
# What MLflow answers for a model, a version or an alias that does not exist.
_ABSENT = (ErrorCode.Name(RESOURCE_DOES_NOT_EXIST), "INVALID_PARAMETER_VALUE")


@dataclass(frozen=True)
class Promotion:
    """From when a version was champion, and why it became so."""

    version: str
    since: str
    why: str


@dataclass(frozen=True)
class Registry:
    """The versions of one registered model."""

    store: TrackingStore
    name: str

    def version_of(self, model_sha256: str) -> ModelVersion | None:
        """Return the version that holds a model file of this hash, if there is one."""
        query = f"name='{self.name}' and tags.`{SHA256_TAG}` = '{model_sha256}'"
        found = self.store.client.search_model_versions(query)
        return max(found, key=lambda version: int(version.version)) if found else None

    def add(
        self, run_id: str, model_sha256: str, description: str, tags: Mapping[str, str]
    ) -> ModelVersion:
        """Register the model of a run as a new version.

        Raises:
            TrackingError: the run has no logged model.
        """
        client = self.store.client
        model_id = client.get_run(run_id).data.tags.get(MODEL_TAG)
        if not model_id:
            raise TrackingError(
                f"a version needs the run's logged model, but run {run_id} has none: run "
                "`headstart sync`, or log it with `dvc repro --force --single-item package`"
            )
        about = "Image classifiers of this project, made by `dvc repro`."
        try:
            client.create_registered_model(self.name, description=about)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        # For a database MLflow looks the model up in its global store, whatever the client's is.
        with global_store(self.store.uri):
            clean = {key: without_secrets(value) for key, value in tags.items()}
            return client.create_model_version(
                self.name,
                source=f"models:/{model_id}",
                run_id=run_id,
                model_id=model_id,
                description=without_secrets(description),
                tags={SHA256_TAG: model_sha256, **clean},
            )

    def holder(self, alias: str) -> ModelVersion | None:
        """Return the version that has the alias, if any."""
        try:
            return self.store.client.get_model_version_by_alias(self.name, alias)
        except MlflowException as error:
            if error.error_code in _ABSENT:
                return None
            raise

    def named_version(self, name: str) -> ModelVersion | None:
        """Return the version of this number or alias; None if there is none."""
        if re.fullmatch(r"[A-Za-z_][\w-]*", name):
            return self.holder(name)
        return next((v for v in self._versions() if str(v.version) == name), None)

    def former_champions(self) -> list[ModelVersion]:
        """Return the versions that were champion, the last promoted first.

        Without those that were rolled back from, and those that were deleted.
        """
        history = self.history()
        known = {str(version.version): version for version in self._versions()}
        numbers = dict.fromkeys(each.version for each in reversed(history))
        left = _rolled_back_from(history)
        return [known[number] for number in numbers if number in known and number not in left]

    def set_alias(self, alias: str, version: str) -> None:
        self.store.client.set_registered_model_alias(self.name, alias, version)

    def promote(self, version: str, why: str) -> None:
        """Make a version the champion and write it into the history.

        Raises:
            TrackingError: there is no such version; the error lists those that exist.
        """
        client = self.store.client
        try:
            client.get_model_version(self.name, version)
        except MlflowException:
            numbers = sorted((str(version.version) for version in self._versions()), key=int)
            listed = ", ".join(numbers) or "none"
            raise TrackingError(
                f"a version of {self.name!r} must exist, but got {version!r}; there are: {listed}"
            ) from None
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        history = [*self.history(), Promotion(version, now, without_secrets(why))]
        self.set_alias(CHAMPION, version)
        challenger = self.holder(CHALLENGER)
        if challenger is not None and str(challenger.version) == version:
            client.delete_registered_model_alias(self.name, CHALLENGER)
        # MLflow keeps 5,000 characters per tag: the oldest promotions are left out beyond that.
        while len(text := json.dumps([asdict(promotion) for promotion in history])) > 5000:
            history = history[1:]
        client.set_registered_model_tag(self.name, _HISTORY_TAG, text)
        client.set_model_version_tag(self.name, version, CHAMPION_SINCE, now)
        client.set_model_version_tag(self.name, version, "champion.why", why[:5000])

    def history(self) -> list[Promotion]:
        """Return all promotions, oldest first.

        Raises:
            TrackingError: the tag that holds them is not as it was written.
        """
        try:
            tags = self.store.client.get_registered_model(self.name).tags
        except MlflowException as error:
            # Anything else must not look like an empty history, which a promotion would replace.
            if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                raise
            return []
        try:
            return [Promotion(**each) for each in json.loads(tags.get(_HISTORY_TAG, "[]"))]
        except (ValueError, TypeError) as error:
            raise TrackingError(
                f"the tag {_HISTORY_TAG} of the registered model {self.name!r} must be a history "
                f"as `headstart promote` writes it, but {one_line(error, 80)}: correct it in "
                "`mlflow ui`, or delete it to begin a new history"
            ) from None

    def roll_back(self) -> tuple[str, str]:
        """Give the champion alias back to the previous champion; return (from, to).

        Raises:
            TrackingError: there is no champion, or none before it.
        """
        champion = self.holder(CHAMPION)
        if champion is None:
            raise TrackingError(
                f"a rollback needs a champion, but {self.name!r} has none: run `dvc repro`"
            )
        current, history = str(champion.version), self.history()
        # Never to a version that was itself rolled back from.
        left = _rolled_back_from(history)
        earlier = [each.version for each in history if each.version not in {current, *left}]
        if not earlier:
            raise TrackingError(
                f"a rollback needs an earlier champion, but version {current} of {self.name!r} is "
                "the first: name a version with `headstart promote VERSION`"
            )
        self.promote(earlier[-1], f"{_ROLLED_BACK}{current}")
        return current, earlier[-1]

    def _versions(self) -> list[ModelVersion]:
        return list(self.store.client.search_model_versions(f"name='{self.name}'"))


def _rolled_back_from(history: list[Promotion]) -> set[str]:
    """The versions that were, and were not promoted again since."""
    left: set[str] = set()
    for each in history:
        left.discard(each.version)
        if each.why.startswith(_ROLLED_BACK):
            left.add(each.why.removeprefix(_ROLLED_BACK))
    return left


def open_registry(project: Project, model_name: str) -> Registry:
    """Return the registry of this project's model.

    Raises:
        TrackingError: the store does not answer.
    """
    return Registry(open_store(project.root), model_name)


@dataclass(frozen=True)
class Standing:
    """What the registry says now of a model file; None where it knows nothing."""

    version: str | None
    alias: str | None
    champion: str | None


def standing(project: Project, model_name: str, model_sha256: str) -> Standing | None:
    """Ask the registry; return None if there is no database here, which asking would create.

    Raises:
        TrackingError: the store does not answer.
    """
    database = own_database(project.root)
    if database is not None and not database.is_file():
        return None
    with answering(tracking_uri(project.root)):
        registry = open_registry(project, model_name)
        found = registry.version_of(model_sha256)
        holders = {alias: registry.holder(alias) for alias in (CHAMPION, CHALLENGER)}
    version = str(found.version) if found else None
    numbers = {alias: str(holder.version) for alias, holder in holders.items() if holder}
    alias = next((alias for alias, number in numbers.items() if number == version), None)
    return Standing(version, alias, numbers.get(CHAMPION))
