"""The short summary after `make demo`: what came out, where it is, and what to try next."""

import importlib.util
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart.common import files
from headstart.common.errors import TrackingError
from headstart.common.paths import Project, sqlite_uri, state_folder
from headstart.tracking.registry import Standing, standing
from headstart.tracking.store import run_table_address


@dataclass(frozen=True)
class ProjectSummary:
    """What the last `dvc repro` of a project made. It names only what is in this checkout.

    Attributes:
        metrics: of the test split, as reports/metrics.json has them.
        registered: the model's name and, as the registry says now, its version and alias, and which
            version is champion; None where there is none.
        at_registration: version and alias when register ran.
        problem: why the registry knows nothing of the model; empty where it does.
        runs: the address of the run table in MLflow, or why there is none; empty without runs.
        seconds: stage → of its last run in this checkout, in the order of dvc.yaml.
        commands: what to try next, each with a comment.
    """

    metrics: Mapping[str, Any]
    registered: Mapping[str, str | None]
    at_registration: Mapping[str, str]
    problem: str
    model: str | None
    reports: list[str]
    runs: str
    seconds: Mapping[str, float]
    commands: list[str]

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        names = (
            "metrics", "registered", "at_registration", "model", "reports", "runs", "seconds",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def as_text(self) -> str:
        """Return about twenty lines for a terminal."""
        name, version = self.registered["model"], self.registered["version"]
        if version is not None:
            alias, champion = self.registered["alias"], self.registered["champion"]
            if alias != "champion":
                leader = f"champion is version {champion}" if champion else "there is no champion"
                alias = f"{alias}; {leader}" if alias else leader
            registered = [f"{name} version {version}, {alias}"]
        else:
            # What is in git may be of another machine.
            then = f"version {self.at_registration['version']}, {self.at_registration['alias']}"
            registered = [f"{name} {then}, when register ran", f"({self.problem})"]
        away = "not here: `dvc pull`"
        seconds = ", ".join(f"{stage} {number:.0f}" for stage, number in self.seconds.items())
        lines = [
            ("Test accuracy", [accuracy_text(self.metrics)]),
            ("Registered as", registered),
            ("Reports", self.reports or [away]),
            *([("Runs", [self.runs])] if self.runs else []),
            ("Model", [f"{self.model} (loads in plain Keras)" if self.model else away]),
            ("Seconds", [seconds or "no stage has run in this checkout"]),
        ]
        said = [
            f"{heading if position == 0 else '':<16}{line}"
            for heading, texts in lines
            for position, line in enumerate(texts)
        ]
        invitation = "With the environment active (`. .venv/bin/activate`), try:"
        tried = [f"  {command}" for command in self.commands]
        return "\n".join(["", *said, "", invitation, *tried])


def summarise(project: Project) -> ProjectSummary:
    """Return figures from the reports, and aliases from the registry.

    Raises:
        TrackingError: the reports are missing, or not as evaluate and register write them.
    """
    metrics = _report(project, "metrics.json")
    registration = _report(project, "registration.json")
    try:
        accuracy_text(metrics)
        name, sha256 = registration["model_name"], registration["model_sha256"]
        then = {key: str(registration[key]) for key in ("version", "alias")}
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
    pages = [f"reports/{page}/index.html" for page in ("evaluation", "data", "search")]
    try:
        runs = run_table_address(project.root) if found is not None else ""
    except TrackingError as error:
        runs = f"({error})"
    # Each stage's last run in this checkout.
    latest: dict[str, float] = {}
    log = state_folder(project.root) / "seconds.jsonl"
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
        entry = json.loads(line)
        latest[entry["stage"]] = float(entry["seconds"])
    return ProjectSummary(
        metrics=metrics,
        registered={
            "model": name,
            "version": found.version if found else None,
            "alias": found.alias if found else None,
            "champion": found.champion if found else None,
        },
        at_registration=then,
        problem="" if found and found.version else problem,
        model="models/model.h5" if project.model.is_file() else None,
        reports=[page for page in pages if (project.root / page).is_file()],
        runs=runs,
        seconds={
            stage: latest[stage]
            for stage in files.read_yaml(project.dvc_yaml)["stages"]
            if stage in latest
        },
        commands=_commands(project, name, found),
    )


def _commands(project: Project, name: str, found: Standing | None) -> list[str]:
    is_here, commands = project.model.is_file(), []
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
    return commands


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
