"""The MLflow run that train opens, and the names that runs, heads and params have in every run."""

import contextlib
import getpass
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from headstart.common import files
from headstart.common.errors import TrackingError
from headstart.common.paths import Project
from headstart.common.secrets import without_secrets
from headstart.heads.config import BestHead, HeadConfig, HeadEnsemble, describe_layers
from headstart.params.whole_file import Params, load_params
from headstart.tracking.lineage import gather_lineage
from headstart.tracking.runs import FEATURES, Run, given_run, new_run

# Params that say how something was computed, or come later in a run's name.
_NOT_IN_NAMES = (
    "data.source", "extract.batch_size", "search.storage", "search.timeout_s", "search.workers",
)  # fmt: skip
_MOST_DIFFERENCES = 3
_MOST_CHARACTERS = 24


@contextlib.contextmanager
def open_training(
    project: Project, best: BestHead, recipe: Mapping[str, Any], fingerprint: str, seed: int
) -> Iterator[Run]:
    """Open the run of a model before the work starts, with its lineage, params and inputs.

    When the work is done, models/run.json names the run.

    Args:
        recipe: what the feature fingerprint covers.
    """
    tags = {
        "headstart.kind": "model",
        "fingerprint": fingerprint,
        "seed": str(seed),
        "study": best.study,
        "trial": str(best.trial),
        # As resolved: params.yaml may say auto.
        "extract.runtime": str(recipe["runtime"]),
        "extract.precision": str(recipe["precision"]),
    }
    lineage = gather_lineage(project, "train", tags)
    resolved = load_params(project.params)
    values = resolved.model_dump(mode="json", by_alias=True)
    # evaluate and register do not change the model; the space is the study's, on its own run.
    of_model = {name: values[name] for name in values if name not in ("evaluate", "register")}
    of_model["search"] = {k: v for k, v in of_model["search"].items() if k != "space"}
    params = flatten_params({**of_model, "head": best.config.model_dump(mode="json")})
    head = describe_head(best.config)
    if best.ensemble is not None and resolved.train.combine == "trials":
        head = f"ensemble of {len(best.ensemble.members)}"
        params["head.ensemble"] = best.ensemble.of_trials()
    name = run_name(resolved, head)
    run = given_run(project)
    if run is not None:
        given = run.store.find_run(run.run_id)
        logged = given.data.params
        others = [key for key, value in params.items() if logged.get(key) != value]
        # It is open, as by `mlflow run`, or of the same params; an id that was left in a shell must
        # not overwrite another training.
        if given.info.status != "RUNNING" and others:
            key = others[0]
            raise TrackingError(
                "MLFLOW_RUN_ID must name a run that is open, or one with the params of this "
                f"training, but {run.run_id} is {given.info.status} and {len(others)} of its "
                f"params differ ({key} is {logged.get(key, 'not logged')}, not {params[key]}): "
                "unset MLFLOW_RUN_ID, and the training opens a run of its own"
            )
        run.set_tags({"mlflow.runName": name, **lineage.tags})
    else:
        try:
            user = getpass.getuser()
        except (KeyError, OSError):
            # A container's user need not have a name.
            user = "unknown"
        # What `mlflow run` writes on the runs that it opens.
        opened = {"mlflow.source.name": "dvc.yaml:train", "mlflow.user": user}
        run = new_run(project, name, {**opened, **lineage.tags})
    with run:
        run.log_params(params)
        run.about = (
            f"Head: {head}; on features of {recipe['backbone']}, for the images of "
            f"{source_name(resolved.data.source)}; seed {seed}."
        )
        run.describe("")
        # What MLflow's table of runs shows is the first input.
        ordered = sorted(lineage.inputs, key=lambda output: output.path != FEATURES)
        inputs = [(output, "training") for output in ordered]
        inputs += [(output, "validation") for output in ordered if output.path == FEATURES]
        if lineage.source is not None and lineage.source.md5:
            inputs.append((lineage.source, "training"))
        run.log_inputs(inputs, lineage)
        # What the run can be made again from, and compared by.
        texts = {
            "params.yaml": project.params.read_text(encoding="utf-8"),
            "resolved_params.yaml": yaml.safe_dump(values, sort_keys=False, allow_unicode=True),
        }
        if project.dvc_lock.is_file():
            texts["dvc.lock"] = project.dvc_lock.read_text(encoding="utf-8")
        if lineage.git.diff:
            texts["uncommitted.patch"] = lineage.git.diff
        for name, text in texts.items():
            run.log_text(text, name, "provenance")
        for path in (project.splits, project.manifest):
            if path.is_file():
                run.log_artifact(path, "provenance")
        yield run
        # Which run the model in the workspace belongs to; read by `read_run_id`.
        header = {"format": "headstart-run", "format_version": 1}
        names = {"run_id": run.run_id, "experiment_name": run.store.experiment_name}
        files.write_json(project.run, header | names)


def run_name(params: Params, what: str) -> str:
    """Return DVC's experiment name if there is one, what differs, the data, and `what` was made.

    MLflow's table shows about 25 characters, so what differs comes first: params that are not at
    their defaults as `name=value`, the model's nearest first, a name being the param's path within
    its section, with the section where two have such a one. Runs are found by their ids and tags,
    never by this name.
    """
    # evaluate and register make no run of their own.
    given, default = (
        flatten_params(
            every.model_dump(mode="json", by_alias=True, exclude={"evaluate", "register_"})
        )
        for every in (params, Params())
    )
    # "seed" is in no section.
    short = {name: name.partition(".")[2] or name for name in {**default, **given}}
    times = Counter(short.values())
    differences = []
    for name, value in reversed(given.items()):
        if value != default.get(name) and name not in _NOT_IN_NAMES:
            # Of a path its last part says most.
            text = value if len(value) <= _MOST_CHARACTERS else value.rstrip("/").split("/")[-1]
            if len(text) > _MOST_CHARACTERS:
                text = f"{text[: _MOST_CHARACTERS - 1]}…"
            differences.append(f"{short[name] if times[short[name]] == 1 else name}={text}")
    if len(differences) > _MOST_DIFFERENCES:
        differences[_MOST_DIFFERENCES:] = ["…"]
    parts = [os.environ.get("DVC_EXP_NAME"), *differences, source_name(params.data.source), what]
    return " · ".join(part for part in parts if part)


def source_name(source: str) -> str:
    """Return what a person would call a data source: its last part, without ending or query."""
    last = source.split("?")[0].rstrip("/").rpartition("/")[2]
    return last.partition(".")[0] or last


def describe_ensemble(ensemble: HeadEnsemble) -> str:
    """Say how much better an ensemble of trials is than the best one."""
    return (
        f"an ensemble of {len(ensemble.members)} trials lowers log loss by "
        f"{ensemble.gain:.3f} ± {ensemble.error:.3f}"
    )


def describe_head(head: HeadConfig) -> str:
    """Return what a person would call a head."""
    if head.kind != "network":
        return f"{head.kind.replace('_', ' ')} on {describe_layers(head.layers)}"
    if head.hidden_layers == 0:
        return "linear"
    return f"{head.hidden_layers}×{head.width} {head.activation}"


def flatten_params(sections: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested params as `section.field` → text, without secrets; None as `none`.

    The names of a list are joined by commas.
    """
    flat: dict[str, str] = {}
    for key, value in sections.items():
        if isinstance(value, dict):
            flat |= flatten_params(value, f"{prefix}{key}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            flat[f"{prefix}{key}"] = without_secrets("none" if value is None else text)
    return flat
