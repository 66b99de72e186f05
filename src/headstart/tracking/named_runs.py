"""The run that somebody means: by its id or how that begins, a DVC experiment, or a version."""

import re

from mlflow.entities import Run as MlflowRun

from headstart.common.errors import TrackingError
from headstart.common.paths import Project
from headstart.common.terminal import printable
from headstart.params.whole_file import load_params
from headstart.tracking.dvc_experiments import is_dvc_repository, runs_of_refs
from headstart.tracking.registry import Registry
from headstart.tracking.store import TrackingStore, answering

_ID = re.compile("[0-9a-f]{32}")
_BEGINNING = re.compile("[0-9a-f]{4,31}")


def named_run(project: Project, store: TrackingStore, name: str) -> MlflowRun:
    """Return the run of this name.

    Args:
        name: a run's id, or four characters or more that it begins with; a DVC experiment, whose
            newest run is meant; a version of the project's registered model, or an alias such as
            champion.

    Raises:
        TrackingError: it is of no run, or its beginning of several; or the store does not answer.
    """
    if _ID.fullmatch(name):
        return store.find_run(name)
    with answering(store.uri):
        registry = Registry(store, load_params(project.params).register_.model_name)
        version = registry.named_version(name)
        if version is not None and version.run_id is not None:
            return store.find_run(version.run_id)
        models = trained_runs(store)
        found = [run for run in models if run.data.tags.get("dvc.exp_name") == name]
        if found:
            return max(found, key=lambda run: run.info.start_time)
        if _BEGINNING.fullmatch(name):
            found = [run for run in models if run.info.run_id.startswith(name)]
        elif is_dvc_repository(project.root):
            # One that only evaluated anew has the run of its baseline.
            refs = runs_of_refs(project.root)
            named = {each.run_id for each in refs if each.experiment == name}
            found = [run for run in models if run.info.run_id in named]
    if len(found) == 1:
        return found[0]
    some = ", ".join(run.info.run_id[:8] for run in (found or models)[:5]) or "none yet"
    raise TrackingError(
        "a run must be named by its id or how that begins, a DVC experiment or a registered "
        f"version, but {printable(name)} is of {len(found)} runs: `headstart leaderboard` lists "
        f"them ({some})"
    )


def version_of_run(project: Project, registry: Registry, name: str) -> str:
    """Return the registered version of a run of this name; a number is returned as it is.

    Raises:
        TrackingError: there is no such run, or it has no version.
    """
    if name.isdecimal():
        return name
    run = named_run(project, registry.store, name)
    version = run.data.tags.get("registered.version")
    if version is None:
        raise TrackingError(
            f"a run must have a registered version to be promoted, but {run.info.run_id} has none: "
            "`dvc repro` registers the model of the workspace"
        )
    return str(version)


def trained_runs(store: TrackingStore) -> list[MlflowRun]:
    """Return the runs of trained models that ended, of the project's experiment."""
    found: list[MlflowRun] = []
    token = None
    while True:
        page = store.client.search_runs(
            [store.experiment_id],
            "tags.`headstart.kind` = 'model' AND attributes.status = 'FINISHED'",
            max_results=1000,
            page_token=token,
        )
        found += [run for run in page if "val_accuracy" in run.data.metrics]
        token = page.token
        if not token:
            return found
