"""`headstart tidy`: the runs, models and experiments that are worth their disk stay, the rest goes.

What is kept is decided anew by each call, and nothing that is kept is ever touched: after a kill,
the next call finishes.
"""

import contextlib
import getpass
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mlflow.entities import LoggedModel, ViewType
from mlflow.entities import Run as MlflowRun
from mlflow.entities.model_registry import ModelVersion
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from headstart.common.paths import Project, cache_folder
from headstart.common.progress import progress
from headstart.common.terminal import printable, size_text, table
from headstart.tracking.dvc_experiments import (
    RefRun,
    UnusedObject,
    check_idle,
    has_commit,
    is_dvc_repository,
    remove_experiments,
    remove_objects,
    runs_of_refs,
    unused_objects,
    worktrees,
)
from headstart.tracking.leaderboard import standing_key
from headstart.tracking.offline_runs import offline_folder
from headstart.tracking.registry import CHAMPION_SINCE, SHA256_TAG
from headstart.tracking.runs import read_run_id
from headstart.tracking.store import TrackingStore, answering, open_store, own_database

# Set on a run in `mlflow ui`, with any value but these, it keeps the run.
PINNED_TAG = "headstart.pinned"
_NOT_PINNED = ("", "false", "no", "0")
_PARENT_TAG = "mlflow.parentRunId"
# Of what kind a run is, in the order of removal: those of a model go last, so that after a kill
# what belongs to them is found by them.
_KINDS = ("trial", "study", "reproduction", "model")


@dataclass(frozen=True)
class KeptRun:
    """A run of a trained model that stays, and why."""

    run_id: str
    name: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class TidyPlan:
    """What stays and what goes.

    Attributes:
        permanently: the store is this project's own database, whose files can be removed; in
            another store runs and models are marked as deleted, and `mlflow gc` there removes them.
        n_others: runs of models that stay for being somebody else's, or another project's.
        runs, models, versions: of the tracking store, to be removed; runs of models come last.
        experiments: DVC's, to be removed.
        objects: of DVC's cache, to be removed; a text says why it is left alone.
        run_bytes, model_bytes: what their files take.
    """

    store: TrackingStore
    root: Path
    permanently: bool
    kept: tuple[KeptRun, ...]
    n_others: int
    runs: tuple[MlflowRun, ...]
    models: tuple[LoggedModel, ...]
    versions: tuple[ModelVersion, ...]
    experiments: tuple[RefRun, ...]
    objects: tuple[UnusedObject, ...] | str
    run_bytes: int
    model_bytes: int

    @property
    def n_bytes(self) -> int:
        """What removing it frees on this machine."""
        objects = () if isinstance(self.objects, str) else self.objects
        return self.run_bytes + self.model_bytes + sum(each.n_bytes for each in objects)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to remove."""
        return not (self.runs or self.experiments) and (
            isinstance(self.objects, str) or not self.objects
        )

    def as_json(self) -> dict[str, Any]:
        """Return plain values: the runs that stay, and what goes, by its ids."""
        cache = () if isinstance(self.objects, str) else self.objects
        return {
            "kept": [asdict(run) for run in self.kept],
            "runs": [run.info.run_id for run in self.runs],
            "models": [model.model_id for model in self.models],
            "versions": [f"{each.name}/{each.version}" for each in self.versions],
            "experiments": [each.experiment for each in self.experiments],
            "n_cache_files": len(cache),
            "n_bytes": self.n_bytes,
        }

    def as_text(self) -> str:
        """What stays, with the reasons, and what goes, with its size."""
        lines = [f"{len(self.kept)} runs of models stay:"]
        for run in self.kept:
            lines += [f"  {run.run_id[:8]}  {printable(run.name)[:68]}"]
            lines += [f"    {line}" for line in wrap(", ".join(run.reasons), 76)]
        if self.n_others:
            lines.append(f"and {self.n_others:,} of other users or projects")
        n_models = sum(_kind(run) == "model" for run in self.runs)
        size = size_text if self.permanently else lambda _: "by `mlflow gc`"
        rows = [
            ["runs of models", f"{n_models:,}", size(self.run_bytes)],
            ["runs of their studies and trials", f"{len(self.runs) - n_models:,}", ""],
            ["logged models", f"{len(self.models):,}", size(self.model_bytes)],
            ["registered versions, never champion", f"{len(self.versions):,}", ""],
            ["DVC experiments", f"{len(self.experiments):,}", ""],
        ]
        if not isinstance(self.objects, str):
            n_bytes = sum(each.n_bytes for each in self.objects)
            what = "files of DVC's cache that nothing needs"
            rows.append([what, f"{len(self.objects):,}", size_text(n_bytes)])
        lines += ["", *table(["to be removed", "number", "size"], rows)]
        if isinstance(self.objects, str):
            lines += wrap(f"DVC's cache stays: {self.objects}.", 80)
        lines += [
            f"The row cache in {cache_folder()} stays, as other projects may use it:",
            "`headstart cache gc --older-than-days 30` frees what nobody has used.",
        ]
        return "\n".join(lines)


def plan_tidy(project: Project, *, keep: int = 5) -> TidyPlan:
    """Decide what stays and what goes; nothing is changed.

    Of a store that is not this project's own, only runs of this user whose commit is in this
    repository are considered: others may use it.

    Args:
        keep: runs that stay for being the best, by the leaderboard's order.

    Raises:
        TrackingError: the store does not answer.
    """
    # Of the main checkout: its cache has what experiments and other worktrees have made.
    root, store = worktrees(project.root)[0], open_store(project.root)
    permanently = own_database(project.root) is not None
    with answering(store.uri):
        runs = list(_runs(store, ViewType.ALL if permanently else ViewType.ACTIVE_ONLY))
        refs = runs_of_refs(root) if is_dvc_repository(root) else []
        reasons = _reasons(project, root, runs, refs, keep)
        others = []
        if not permanently:
            others = [run for run in runs if _kind(run) == "model" and not _is_ours(root, run)]
            for run in others:
                reasons[run.info.run_id] = []
        versions = []
        for run in runs:
            found = store.client.search_model_versions(f"run_id = '{run.info.run_id}'")
            for version in found if _kind(run) == "model" else ():
                if why := _why_kept(store, version):
                    reasons.setdefault(run.info.run_id, []).append(why)
                else:
                    versions.append(version)
        # A run of the same model has the version of the first.
        of_kept = {r.data.tags.get("registered.version") for r in runs if r.info.run_id in reasons}
        for version in versions:
            if str(version.version) in of_kept and version.run_id not in reasons:
                reasons[str(version.run_id)] = [
                    f"version {version.version}, also of a run that stays"
                ]
        doomed = _doomed(runs, reasons)
        gone = {run.info.run_id for run in doomed}
        models = [model for model in _models(store) if model.source_run_id in gone]
    experiments = tuple(each for each in refs if each.experiment and each.run_id in gone)
    stay = [run for run in runs if _kind(run) == "model" and run.info.run_id not in gone]
    leaving = {each.ref for each in experiments}
    objects = unused_objects(
        root,
        kept=[each.ref for each in refs if each.experiment and each.ref not in leaving],
        commits=sorted({run.data.tags.get("git.commit", "none") for run in stay}),
        # A run is made again from its data, which need not be in any commit.
        hashes=sorted({run.data.tags.get("dvc.source.md5", "") for run in stay} - {""}),
    )
    return TidyPlan(
        store=store,
        root=root,
        permanently=permanently,
        kept=tuple(
            KeptRun(
                run.info.run_id, str(run.info.run_name), tuple(reasons.get(run.info.run_id, ()))
            )
            for run in sorted(stay, key=standing_key)
            if run not in others
        ),
        n_others=len(others),
        runs=doomed,
        models=tuple(models),
        versions=tuple(version for version in versions if version.run_id in gone),
        experiments=experiments,
        objects=objects if isinstance(objects, str) else tuple(objects),
        run_bytes=sum(_bytes_at(run.info.artifact_uri) for run in doomed),
        model_bytes=sum(_bytes_at(model.artifact_location) for model in models),
    )


def remove_unneeded(plan: TidyPlan) -> None:
    """Remove what the plan says.

    Raises:
        TrackingError: a stage or an experiment runs, or the store does not answer.
    """
    check_idle(plan.root)
    store, client = plan.store, plan.store.client
    # Experiments name their runs, so they go first; the cache, which runs name, goes last.
    remove_experiments(plan.root, {each.ref for each in plan.experiments})
    with answering(store.uri):
        # Nobody shall see a run that has lost its files: first all of them are marked as deleted.
        for run in plan.runs:
            if run.info.lifecycle_stage != "deleted":
                client.delete_run(run.info.run_id)
        for version in plan.versions:
            client.delete_model_version(version.name, version.version)
        # As `mlflow gc` does; that would also remove every experiment of MLflow that was deleted.
        rows = client._tracking_client.store
        for model in plan.models:
            if plan.permanently:
                _remove_files(model.artifact_location)
                rows._hard_delete_logged_model(model.model_id)
            else:
                client.delete_logged_model(model.model_id)
        if plan.permanently:
            for run in progress(plan.runs, total=len(plan.runs), unit="runs", title="tidy"):
                _remove_files(run.info.artifact_uri)
                rows._hard_delete_run(run.info.run_id)
    if not isinstance(plan.objects, str):
        remove_objects(plan.root, plan.objects)


def _remove_files(location: str) -> None:
    folder = _folder_of(location)
    if folder is None:
        get_artifact_repository(location).delete_artifacts()  # type: ignore[no-untyped-call]
    elif folder.exists():
        shutil.rmtree(folder)
        with contextlib.suppress(OSError):
            # What MLflow makes around it, if nothing else is in it.
            folder.parent.rmdir()


def _folder_of(location: str) -> Path | None:
    """The folder of this machine that an artifact location names, if it does."""
    if location.startswith("file:"):
        return Path(url2pathname(urlsplit(location).path))
    return Path(location) if location.startswith("/") else None


def _kind(run: MlflowRun) -> str:
    return str(run.data.tags.get("headstart.kind", ""))


def _is_ours(root: Path, run: MlflowRun) -> bool:
    """Return whether this user made a run of this repository."""
    tags = run.data.tags
    is_own = tags.get("mlflow.user") == getpass.getuser()
    return is_own and has_commit(root, tags.get("git.commit", "none"))


def _runs(store: TrackingStore, view: int) -> Iterator[MlflowRun]:
    token = None
    while True:
        page = store.client.search_runs(
            [store.experiment_id], "", view, max_results=1000, page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def _models(store: TrackingStore) -> Iterator[LoggedModel]:
    token = None
    while True:
        page = store.client.search_logged_models([store.experiment_id], page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _reasons(
    project: Project, root: Path, runs: Iterable[MlflowRun], refs: Iterable[RefRun], keep: int
) -> dict[str, list[str]]:
    """Run → why it stays, but for what the registry says."""
    reasons: dict[str, list[str]] = {}

    def because(run_id: str, why: str) -> None:
        reasons.setdefault(run_id, []).append(why)

    models = [run for run in runs if _kind(run) == "model"]
    ranked = [run for run in models if run.info.status == "FINISHED"]
    ranked = [run for run in ranked if run.info.lifecycle_stage != "deleted"]
    ranked = [run for run in ranked if "val_accuracy" in run.data.metrics]
    for place, run in enumerate(sorted(ranked, key=standing_key)[:keep], start=1):
        because(run.info.run_id, f"number {place} of the leaderboard")
    for run in models:
        if run.data.tags.get(PINNED_TAG, "").strip().lower() not in _NOT_PINNED:
            because(run.info.run_id, "pinned")
        if run.info.status == "RUNNING" and run.info.lifecycle_stage != "deleted":
            because(run.info.run_id, "not ended")
        if any(offline_folder(project.root).glob(f"{run.info.run_id}*")):
            because(run.info.run_id, "not sent yet: `headstart sync`")
    for folder in worktrees(root):
        path = Project(folder).run
        if path.is_file():
            # One that cannot be read is an error: it may name any run.
            because(read_run_id(path), f"of the model in {folder.name}")
    made_by = {run.info.run_id: run.data.tags.get("dvc.exp_name") for run in models}
    for each in refs:
        if each.run_id is None:
            continue
        if not each.experiment:
            because(each.run_id, f"of {each.ref.removeprefix('refs/heads/')} in git")
        elif each.run_id in made_by and made_by[each.run_id] != each.experiment:
            # It came by another's run, or got a name that somebody cares for.
            because(each.run_id, f"of the experiment {each.experiment}")
    return reasons


def _why_kept(store: TrackingStore, version: ModelVersion) -> str | None:
    """Why a registered version stays: one that register made stays if it was ever champion."""
    aliases = store.client.get_registered_model(version.name).aliases
    held = sorted(alias for alias, number in aliases.items() if str(number) == str(version.version))
    if held:
        return f"version {version.version}, {', '.join(held)}"
    if CHAMPION_SINCE in version.tags:
        return f"version {version.version}, once champion"
    if SHA256_TAG not in version.tags:
        return f"version {version.version} of {version.name}, registered by hand"
    return None


def _doomed(runs: Iterable[MlflowRun], reasons: dict[str, list[str]]) -> tuple[MlflowRun, ...]:
    """The runs that go, those of models last."""
    runs = list(runs)
    gone = {r.info.run_id for r in runs if _kind(r) == "model" and r.info.run_id not in reasons}
    studies: dict[str, set[bool]] = {}
    for run in runs:
        if _kind(run) == "model" and "study" in run.data.tags:
            studies.setdefault(run.data.tags["study"], set()).add(run.info.run_id in gone)
    for run in runs:
        tags = run.data.tags
        is_deleted = run.info.lifecycle_stage == "deleted" or run.info.status == "FAILED"
        # A study that no model is of yet may be of one that is being trained.
        users = studies.get(tags.get("headstart.study", ""), {True} if is_deleted else {False})
        if (_kind(run) == "study" and users == {True}) or tags.get("headstart.of") in gone:
            gone.add(run.info.run_id)
    known = {run.info.run_id for run in runs}
    for run in runs:
        parent = run.data.tags.get(_PARENT_TAG, "")
        if _kind(run) == "trial" and (parent in gone or parent not in known):
            gone.add(run.info.run_id)
    found = [run for run in runs if run.info.run_id in gone and _kind(run) in _KINDS]
    return tuple(sorted(found, key=lambda run: _KINDS.index(_kind(run))))


def _bytes_at(location: str) -> int:
    """What the files at a location take, where that is a folder of this machine."""
    folder = _folder_of(location)
    found = () if folder is None else folder.rglob("*")
    return sum(path.lstat().st_size for path in found if path.is_file())
