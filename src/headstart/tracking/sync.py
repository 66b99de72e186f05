"""Sending what was kept while the tracking store was away. Doing it twice is harmless."""

import shutil
from dataclasses import dataclass

from mlflow.exceptions import MlflowException

from headstart import files
from headstart.errors import TrackingError
from headstart.paths import Project
from headstart.tracking import outbox
from headstart.tracking.runs import pending_folder
from headstart.tracking.secrets import without_secrets
from headstart.tracking.store import open_store, unreachable


@dataclass(frozen=True)
class Synced:
    """What a sync sent."""

    run_id: str
    operations: int


def sync(project: Project) -> list[Synced]:
    """Send every outbox to the tracking store it was meant for, and remove those that were sent.

    Raises:
        TrackingError: the store is still away, or another store is set than the one meant.
    """
    folder = pending_folder(project.root)
    boxes = sorted(folder.glob("*/run.json")) if folder.is_dir() else []
    if not boxes:
        return []
    store = open_store(project.root)
    sent = []
    for box in boxes:
        meant = files.read_json(box)
        if meant["tracking_uri"] != without_secrets(store.uri):
            raise TrackingError(
                f"run {meant['run_id']} belongs to {meant['tracking_uri']}, but the tracking "
                f"store is {without_secrets(store.uri)}: set MLFLOW_TRACKING_URI and sync again"
            )
        operations = list(outbox.kept(box.parent))
        for operation in operations:
            try:
                outbox.apply(store.client, meant["run_id"], operation)
            except (MlflowException, OSError) as error:
                raise unreachable(store.uri, error) from None
        shutil.rmtree(box.parent)
        sent.append(Synced(meant["run_id"], len(operations)))
    return sent
