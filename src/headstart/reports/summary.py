"""The short summary after `make demo`: what came out, where it is, and what to try next."""

import importlib.util
import json
import os
import shlex
from collections.abc import Iterator
from typing import Any

from headstart.common import files
from headstart.common.errors import TrackingError
from headstart.common.paths import Project, state_folder
from headstart.tracking.registry import Standing, standing


def summarise(project: Project) -> str:
    """A text of about twenty lines: figures from the reports, the alias from the registry.

    It names only what is in this checkout.
    """
    metrics = _report(project, "metrics.json")
    registration = _report(project, "registration.json")
    try:
        accuracy, low, high = (
            f"{100 * metrics[name]:.1f}"
            for name in ("accuracy", "accuracy_ci95_low", "accuracy_ci95_high")
        )
        figure = f"{accuracy} % (95 % interval {low} to {high}) on {metrics['n_test']} images"
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
        registered = [f"{name} version {found.version}, {_alias(found)}"]
    else:
        # What is in git may be of another machine.
        registered = [f"{then}, when register ran", f"({problem})"]
    pages = [f"reports/{page}/index.html" for page in ("evaluation", "data", "search")]
    reports = [page for page in pages if (project.root / page).is_file()]
    is_here = project.model.is_file()
    model = "models/model.h5 (loads in plain Keras)" if is_here else "not here: `dvc pull`"
    seconds = ", ".join(f"{stage} {t:.0f}" for stage, t in _seconds(project).items())
    lines = [
        ("Test accuracy", [figure]),
        ("Registered as", registered),
        ("Reports", reports or ["not here: `dvc pull`"]),
        ("Model", [model]),
        ("Seconds", [seconds or "no stage has run in this checkout"]),
    ]
    said = [
        f"{heading if position == 0 else '':<16}{line}"
        for heading, texts in lines
        for position, line in enumerate(texts)
    ]
    invitation = "With the environment active (`. .venv/bin/activate`), try:"
    commands = [f"  {command}" for command in _commands(project, name, found)]
    return "\n".join(["", *said, "", invitation, *commands])


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


def _seconds(project: Project) -> dict[str, float]:
    """Seconds each stage took when it last ran in this checkout, in the order of dvc.yaml."""
    path = state_folder(project.root) / "seconds.jsonl"
    latest: dict[str, float] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            latest[entry["stage"]] = float(entry["seconds"])
    stages = files.read_yaml(project.dvc_yaml)["stages"]
    return {name: latest[name] for name in stages if name in latest}


def _alias(found: Standing) -> str:
    if found.alias == "champion":
        return "champion"
    champion = f"champion is version {found.champion}" if found.champion else "there is no champion"
    return f"{found.alias}; {champion}" if found.alias else champion


def _commands(project: Project, name: str, found: Standing | None) -> Iterator[str]:
    if found is not None:
        yield "mlflow ui -w 1                        # the runs, side by side"
    if found is not None and found.champion is not None:
        yield f"mlflow models serve -m models:/{name}@champion --env-manager local -p 5001"
    elif project.serving.is_dir():
        yield "mlflow models serve -m models/serving --env-manager local -p 5001"
    if project.serving.is_dir():
        yield "headstart serve                       # the same app, behind limits"
    if project.model.is_file() and project.fetched.is_dir():
        yield "headstart predict data/fetched        # classes of images"
    if project.model.is_file():
        yield "dvc exp run --temp -S seed=1          # another experiment: `dvc exp show -A`"
    else:
        yield "dvc pull                              # the model and its data, from a DVC remote"
    try:
        study = files.read_json(project.best_head)["study"]
    except (OSError, ValueError, TypeError, KeyError):
        return
    journal = state_folder(project.root) / "studies" / f"{study}.journal"
    if journal.is_file():
        if importlib.util.find_spec("optuna_dashboard") is None:
            yield "pip install optuna-dashboard          # then:"
        yield f"optuna-dashboard {shlex.quote(os.path.relpath(journal, project.root))}"
