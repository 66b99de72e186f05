"""The short summary after `make demo`: what came out, where it is, and what to try next."""

import importlib.util
import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headstart.common import files
from headstart.common.errors import TrackingError
from headstart.common.paths import Project, sqlite_uri, state_folder
from headstart.tracking.registry import standing
from headstart.tracking.store import run_table_address


def summarise(project: Project) -> str:
    """Return about twenty lines: figures from the reports, the alias from the registry.

    It names only what is in this checkout.
    """
    metrics = _report(project, "metrics.json")
    registration = _report(project, "registration.json")
    try:
        figure = accuracy_text(metrics)
        name, sha256 = registration["model_name"], registration["model_sha256"]
        then = f"{name} version {registration['version']}, {registration['alias']}"
    except (KeyError, TypeError, ValueError):
        raise TrackingError(
            "reports/metrics.json and reports/registration.json must be as evaluate and register "
            "write them, but they are not: run `dvc repro --force evaluate`, then `dvc repro`"
        ) from None
    found, problem = None, f"{name} is not in a registry here"
    try:
        found = standing(project, name, sha256)
    except TrackingError as error:
        problem = str(error)
    if found is not None and found.version is not None:
        alias = found.alias
        if alias != "champion":
            champion = found.champion
            leader = f"champion is version {champion}" if champion else "there is no champion"
            alias = f"{alias}; {leader}" if alias else leader
        registered = [f"{name} version {found.version}, {alias}"]
    else:
        # What is in git may be of another machine.
        registered = [f"{then}, when register ran", f"({problem})"]
    pages = [f"reports/{page}/index.html" for page in ("evaluation", "data", "search")]
    reports = [page for page in pages if (project.root / page).is_file()]
    try:
        runs = [run_table_address(project.root)] if found is not None else []
    except TrackingError as error:
        runs = [f"({error})"]
    is_here, away = project.model.is_file(), "not here: `dvc pull`"
    # Each stage's last run in this checkout, in the order of dvc.yaml.
    latest: dict[str, float] = {}
    log = state_folder(project.root) / "seconds.jsonl"
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
        entry = json.loads(line)
        latest[entry["stage"]] = float(entry["seconds"])
    stages = [stage for stage in files.read_yaml(project.dvc_yaml)["stages"] if stage in latest]
    seconds = ", ".join(f"{stage} {latest[stage]:.0f}" for stage in stages)
    lines = [
        ("Test accuracy", [figure]),
        ("Registered as", registered),
        ("Reports", reports or [away]),
        *([("Runs", runs)] if runs else []),
        ("Model", ["models/model.h5 (loads in plain Keras)" if is_here else away]),
        ("Seconds", [seconds or "no stage has run in this checkout"]),
    ]
    said = [
        f"{heading if position == 0 else '':<16}{line}"
        for heading, texts in lines
        for position, line in enumerate(texts)
    ]
    invitation = "With the environment active (`. .venv/bin/activate`), try:"
    commands = []
    if found is not None:
        commands.append("headstart leaderboard                 # which run is best, and why")
        commands.append("mlflow ui -w 1                        # the runs, side by side")
    serve = "mlflow models serve -m {} --env-manager local -p 5001"
    if found is not None and found.champion is not None:
        commands.append(serve.format(f"models:/{name}@champion"))
    elif project.serving.is_dir():
        commands.append(serve.format("models/serving"))
    if project.serving.is_dir():
        commands.append("headstart serve                       # the same app, behind limits")
    if is_here and project.fetched.is_dir():
        commands.append("headstart predict data/fetched        # classes of images")
    if is_here:
        commands.append(
            "dvc exp run --temp -S seed=1          # another experiment: `dvc exp show -A`"
        )
    else:
        commands.append(
            "dvc pull                              # the model and its data, from a DVC remote"
        )
    studies = state_folder(project.root) / "studies" / "optuna.db"
    if project.best_head.is_file() and studies.is_file():
        if importlib.util.find_spec("optuna_dashboard") is None:
            commands.append("pip install optuna-dashboard          # then:")
        url = sqlite_uri(Path(os.path.relpath(studies, project.root)))
        commands.append(f"optuna-dashboard {shlex.quote(url)}")
    return "\n".join(["", *said, "", invitation, *(f"  {command}" for command in commands)])


def accuracy_text(metrics: Mapping[str, Any]) -> str:
    """Say the accuracy of metrics.json, with its interval."""
    accuracy, low, high = (
        f"{100 * metrics[name]:.1f}"
        for name in ("accuracy", "accuracy_ci95_low", "accuracy_ci95_high")
    )
    return f"{accuracy} % (95 % interval {low} to {high}) on {metrics['n_test']} images"


def _report(project: Project, name: str) -> dict[str, Any]:
    """Read a JSON report of the pipeline, by its file name under reports/.

    Raises:
        TrackingError: it is missing, or no JSON object (a merge may leave its marks in it).
    """
    path = project.root / "reports" / name
    if not path.is_file():
        raise TrackingError(f"{path} must exist, but it does not: run `dvc repro`")
    try:
        content = files.read_json(path)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise TrackingError(
            f"{path} must hold a JSON object, but it does not: restore it with `git checkout -- "
            f"reports/{name}`, or run `dvc repro`"
        )
    return content
