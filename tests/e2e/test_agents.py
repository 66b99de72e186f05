"""AGENTS.md, followed by a program, and the JSON of every command on the project that it makes."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headstart.cli import app, cache_app
from tests.e2e.conftest import REPOSITORY, Workspace, console, section
from tests.projects.test_run_folder import pictures

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
AGENTS = (REPOSITORY / "AGENTS.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The project of a program that has followed AGENTS.md from its first command to its last."""
    home = tmp_path_factory.mktemp("agents")
    pictures(home / "pictures")
    first, second = (section(AGENTS, one) for one in ("From images to a model", "A better one"))
    Workspace(home, home / "cache").run("bash", "-euc", console(first))
    project = Workspace(home / "pictures-headstart", home / "cache")
    project.run("bash", "-euc", console(second))
    return project


def _value(workspace: Workspace, *arguments: str, status: int = 0) -> Any:
    """What a command with --json prints, which is one value."""
    done = subprocess.run(
        ["headstart", *arguments, "--json"],
        cwd=workspace.root, env=workspace.environment(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == status, f"{arguments}\n{done.stderr}"
    assert done.stdout.isascii()
    return json.loads(done.stdout)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="ascii"))


@pytest.mark.ci
def test_a_program_that_follows_agents_md_gets_what_it_promises(followed: Workspace) -> None:
    made = _read(followed.root.parent / "run.json")
    assert made["project"] == str(followed.root)
    metrics = made["metrics"]
    assert metrics["accuracy_ci95_low"] <= metrics["accuracy"] <= metrics["accuracy_ci95_high"]
    assert made["registered"]["champion"] == "1"
    assert "stripes/odd.jpg" in [issue["path"] for issue in made["label_issues"]]
    answers = _read(followed.root / "answers.json")
    assert len(answers) == 72
    assert {"path", "predicted_label", "probability", "novelty", "error"} <= answers[0].keys()
    evaluation = _read(followed.root / "evaluation.json")
    assert evaluation["metrics"]["n"] == 72
    ranking = _read(followed.root / "ranking.json")["standings"]
    assert len(ranking) == 2
    assert "dvc exp apply more-folds" in [run["adopt"] for run in ranking]
    assert "folds: 8" in (followed.root / "params.yaml").read_text(encoding="utf-8")
    for path in ("reports/rejected.csv", "reports/out_of_fold.csv", "data/manifest.csv"):
        assert (followed.root / path).is_file(), path


def _registered() -> Iterator[str]:
    for command in app.registered_commands:
        assert command.callback is not None
        yield command.name or command.callback.__name__
    for command in cache_app.registered_commands:
        yield f"cache {command.name}"


@pytest.mark.ci
def test_every_command_prints_one_json_value(followed: Workspace, tmp_path: Path) -> None:
    runs = [run["run_id"] for run in _read(followed.root / "ranking.json")["standings"]]
    image = "data/fetched/plain/1.jpg"
    arguments: dict[str, list[str]] = {
        "init": [str(tmp_path / "other"), "--source", image],
        "upgrade": [],
        "run": ["../pictures"],
        "predict": [image],
        "evaluate": ["../pictures"],
        "explain": [image],
        "export": ["--format", "onnx"],
        "inspect": ["models/model.h5"],
        "summary": [],
        "doctor": [],
        "promote": ["2"],
        "rollback": [],
        "sync": [],
        "compare": runs,
        "leaderboard": [],
        "tidy": [],
        "encoders": [],
        "search": ["--join"],
        "cache ls": [],
        "cache verify": [],
        "cache gc": ["--dry-run", "--older-than-days", "0"],
    }
    values = {name: _value(followed, *name.split(), *more) for name, more in arguments.items()}
    assert not [name for name, value in values.items() if value is None]
    assert values["rollback"] == {"model": "headstart", "champion": "1", "before": "2"}
    assert values["inspect"]["path"] == "models/model.h5"
    assert values["encoders"][0]["blocks"]
    # What stops a server and what makes a run again are tested elsewhere.
    assert set(_registered()) - values.keys() == {"serve", "reproduce", "mlproject"}


def test_a_run_made_again_is_a_json_value(followed: Workspace) -> None:
    ranking = _read(followed.root / "ranking.json")["standings"]
    (run,) = [run["run_id"] for run in ranking if run["adopt"].startswith("dvc exp apply")]
    assert _value(followed, "reproduce", run)["holds"] is True


def test_agents_md_is_followed_from_its_first_command_to_its_last() -> None:
    followed = [section(AGENTS, one) for one in ("From images to a model", "A better one")]
    assert console(AGENTS) == "\n".join(map(console, followed))
    assert len(AGENTS.splitlines()) <= 60
