"""From the model in the workspace to a version in the registry, once a model file."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from headstart.common import files
from headstart.common.errors import TrackingError
from headstart.common.machine import library_version
from headstart.common.paths import Project
from headstart.params.register import RegisterParams
from headstart.tracking.dvc_state import DvcState
from headstart.tracking.gate import as_json, decide
from headstart.tracking.registry import CHALLENGER, CHAMPION, Registry, Reign
from headstart.tracking.runs import Run, continued_run
from headstart.tracking.store import answering, open_store, store_exists, tracking_uri


@dataclass(frozen=True)
class Registration:
    """What reports/registration.json holds, and the comparison behind it."""

    model_name: str
    version: str
    alias: str
    why: str
    run_id: str
    model_sha256: str
    history: list[Reign]
    comparison: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        values = asdict(self)
        del values["comparison"]
        return values


def register_model(
    project: Project,
    params: RegisterParams,
    *,
    metadata: Mapping[str, Any],
    test_metrics: Mapping[str, Any],
    groups: Mapping[str, str],
    seed: int,
) -> Registration:
    """Register the workspace's model unless a version holds the same file, and decide its alias.

    The champion keeps its alias when the same file is registered again.

    Raises:
        TrackingError: the run is not in the store, or the store is away.
    """
    model_sha256 = files.sha256_of_file(project.model)
    with (
        answering(tracking_uri(project.root)),
        continued_run(project, {"dvc.stage.register": "done"}) as run,
    ):
        if run.is_away:
            raise TrackingError(
                "registering needs the tracking store, but this run is still to be sent to it: "
                "run `headstart sync` when the store is back, then `dvc repro`"
            )
        registry = Registry(run.store, params.model_name)
        decision = decide(
            registry,
            project.predictions,
            project.model,
            params,
            groups=groups,
            seed=seed,
        )
        version = registry.version_of(model_sha256)
        if version is None:
            description = _description(metadata, test_metrics)
            tags = _tags(project, run, metadata, test_metrics)
            version = registry.add(run.run_id, model_sha256, description, tags)
        number = str(version.version)
        champion = registry.holder(CHAMPION)
        if champion is not None and str(champion.version) == number:
            alias, why = "champion", "it was champion before, and is the same file"
        else:
            alias, why = decision.alias, decision.why
            if alias == "champion":
                registry.crown(number, why)
            else:
                registry.challenge(number)
        # Not the alias: it moves, and only the registry knows where it is now.
        run.set_tags({"registered.version": number})
        return Registration(
            params.model_name,
            number,
            alias,
            why,
            run.run_id,
            model_sha256,
            registry.history(),
            as_json(decision),
        )


@dataclass(frozen=True)
class Standing:
    """What the registry says now of a model file; None where it knows nothing."""

    version: str | None
    alias: str | None
    champion: str | None


def standing(project: Project, model_name: str, model_sha256: str) -> Standing | None:
    """Ask the registry; None if there is no database here, which asking would create.

    Raises:
        TrackingError: the store does not answer.
    """
    if not store_exists(project.root):
        return None
    with answering(tracking_uri(project.root)):
        registry = Registry(open_store(project.root), model_name)
        found = registry.version_of(model_sha256)
        version = str(found.version) if found else None
        holders = {alias: registry.holder(alias) for alias in (CHAMPION, CHALLENGER)}
    numbers = {alias: str(holder.version) for alias, holder in holders.items() if holder}
    alias = next((alias for alias, number in numbers.items() if number == version), None)
    return Standing(version, alias, numbers.get(CHAMPION))


def open_registry(project: Project, params: RegisterParams) -> Registry:
    """The registry of this project's model, for promote and rollback."""
    return Registry(open_store(project.root), params.model_name)


def _tags(
    project: Project, run: Run, metadata: Mapping[str, Any], test_metrics: Mapping[str, Any]
) -> dict[str, str]:
    run_tags = run.store.client.get_run(run.run_id).data.tags
    hashes = {o.path: o.md5 for o in DvcState(project.root).outputs_before("register")}
    metrics = {f"test.{k}": f"{v:.4f}" for k, v in test_metrics.items() if isinstance(v, float)}
    chosen = {
        "model.bytes": str(project.model.stat().st_size),
        "fingerprint": str(metadata.get("fingerprint", "")),
        "data.md5": hashes.get("data/fetched", ""),
        "git.commit": run_tags.get("git.commit", ""),
        "git.dirty": run_tags.get("git.dirty", ""),
        "dvc.exp_name": os.environ.get("DVC_EXP_NAME", ""),
        "version.headstart": library_version("headstart"),
    }
    return {**metrics, **{key: value for key, value in chosen.items() if value}}


def _description(metadata: Mapping[str, Any], test_metrics: Mapping[str, Any]) -> str:
    accuracy = 100 * float(test_metrics["accuracy"])
    low = 100 * float(test_metrics["accuracy_ci95_low"])
    high = 100 * float(test_metrics["accuracy_ci95_high"])
    classes = ", ".join(metadata["classes"][:20])
    return (
        f"Test accuracy {accuracy:.1f} % (95 % interval {low:.1f} to {high:.1f}) on "
        f"{test_metrics['n_test']} images. Classes: {classes}."
    )
