"""Sending what was kept while the tracking store was away. Doing it twice is harmless."""

import shutil
from dataclasses import dataclass, replace

from filelock import FileLock
from mlflow.exceptions import MlflowException

from headstart.common.errors import TrackingError, one_line
from headstart.common.paths import Project
from headstart.common.secrets import without_secrets
from headstart.tracking import outbox
from headstart.tracking.outbox import Outbox
from headstart.tracking.runs import pending_folder
from headstart.tracking.store import TrackingStore, answering, open_store

# An outbox that is being sent has another name, so that a stage that still writes begins a new one.
_SENDING = ".sending"


@dataclass(frozen=True)
class Synced:
    """What a sync sent."""

    run_id: str
    operations: int


def sync(project: Project) -> list[Synced]:
    """Send every outbox to the tracking store it was meant for, and remove those that were sent.

    Raises:
        TrackingError: the store is still away; or, once all others are sent, an outbox is meant
            for another store than the one that is set, or the store refused it.
    """
    pending = pending_folder(project.root)
    if not outbox.outboxes(pending):
        return []
    store = open_store(project.root)
    sent, problems = [], []
    with FileLock(pending / "sync.lock"):
        for box in sorted(outbox.outboxes(pending), key=_begun_first):
            if box.uri != without_secrets(store.uri):
                problems.append(
                    f"run {box.run_id} belongs to {box.uri}, but the tracking store is "
                    f"{without_secrets(store.uri)}: set MLFLOW_TRACKING_URI and sync again"
                )
                continue
            try:
                sent.append(_send(store, box))
            except MlflowException as error:
                problems.append(
                    f"run {box.run_id} must be accepted by the store, but it said: "
                    f"{without_secrets(one_line(error))}; it is kept in {box.folder}"
                )
    if problems:
        done = f"; {len(sent)} other runs were sent" if sent else ""
        raise TrackingError(f"{'; '.join(problems)}{done}")
    return sent


def _begun_first(box: Outbox) -> tuple[bool, int]:
    return not box.folder.name.endswith(_SENDING), len(box.folder.name)


def _send(store: TrackingStore, box: Outbox) -> Synced:
    if not box.folder.name.endswith(_SENDING):
        folder = box.folder.with_name(f"{box.folder.name}{_SENDING}")
        while folder.exists():
            folder = folder.with_name(f"{folder.stem}-later{_SENDING}")
        box = replace(box, folder=box.folder.rename(folder))
    operations = list(box.operations())
    with answering(store.uri):
        for operation in operations:
            outbox.apply(store.client, box.run_id, operation)
    shutil.rmtree(box.folder)
    return Synced(box.run_id, len(operations))
