"""A project of one's own, made, refused, and renewed for another version of the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

import headstart
from headstart.common.errors import ParamsError
from headstart.common.paths import Project
from headstart.params.load import load_sections
from headstart.params.whole_file import load_params
from headstart.projects import recipes
from headstart.projects.create import init_project, upgrade_project
from headstart.projects.recipes import LOCK, RECIPES, check_recipes
from headstart.stages.fetch import Sections
from tests.conftest import REPOSITORY

# What git and DVC are asked must not be answered by the repository that the tests lie in.
pytestmark = pytest.mark.usefixtures("outside")


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))


def test_its_stages_are_those_of_the_repository(tmp_path: Path) -> None:
    init_project(tmp_path / "own", "photos")
    own, here = (
        yaml.safe_load((folder / "dvc.yaml").read_text(encoding="utf-8"))
        for folder in (tmp_path / "own", REPOSITORY)
    )
    assert list(own["stages"]) == list(here["stages"]) == list(RECIPES)
    assert own["plots"] == here["plots"]
    for name, stage in here["stages"].items():
        stage["cmd"] = stage["cmd"].removeprefix("PYTHONPATH=src ")
        stage["deps"] = [d for d in stage["deps"] if not d.startswith(("src/", "requirements/"))]
        stage.setdefault("params", []).append({LOCK: [f"stages.{name}"]})
        assert own["stages"][name] == stage


@pytest.mark.parametrize("name", ["own", "my café #1 50%20?x", 'it\'s {a} "b": c'])
def test_git_and_dvc_take_it_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / "photos of it's").mkdir()
    project = init_project(Path(name), "photos of it's", workflow=True)
    assert project.root == tmp_path / name
    params = load_params(project.params)
    assert params.data.source == str(tmp_path / "photos of it's")
    assert load_sections(project.params, Sections).data.source == params.data.source
    done = subprocess.run(
        ["git", "status", "--porcelain"],
        cwd=project.root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert {line[:2] for line in done.stdout.splitlines()} == {"A "}
    added = done.stdout
    for file in (
        "dvc.yaml",
        "params.yaml",
        "headstart.lock",
        "MLproject",
        "data/splits.csv",
        ".dvc/config",
    ):
        assert file in added
    with Repo(str(project.root)) as repo:
        assert {stage.name for stage in repo.index.stages} == set(RECIPES)
    mlproject = yaml.safe_load((project.root / "MLproject").read_text(encoding="utf-8"))
    assert mlproject["name"] == name
    workflow = project.root / ".github" / "workflows" / "headstart.yaml"
    steps = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]["run"]["steps"]
    assert any("dvc repro" in step.get("run", "") for step in steps)


def test_an_address_stays_as_it_is(tmp_path: Path) -> None:
    address = "https://example.invalid/pictures.zip"
    project = init_project(tmp_path / "own", address)
    assert load_params(project.params).data.source == address


def test_inside_of_another_repository_it_is_a_part_of_that(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    project = init_project(tmp_path / "parts" / "own", "photos")
    assert not (project.root / ".git").exists()
    with Repo(str(project.root)) as repo:
        assert Path(repo.scm.root_dir) == tmp_path


def test_without_git_it_is_in_dvc_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    project = init_project(tmp_path / "own", "photos")
    assert not (project.root / ".git").exists()
    assert "no_scm = true" in (project.root / ".dvc" / "config").read_text(encoding="utf-8").lower()


def test_where_it_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ParamsError, match=r"new or empty folder, but .*full holds something"):
        init_project(tmp_path / "full", "photos")
    inside = REPOSITORY / "data" / "own-project"
    with pytest.raises(ParamsError, match=r"must lie outside of Headstart's own repository"):
        init_project(inside, "photos")
    assert not inside.exists()


def test_another_version_runs_what_it_computes_otherwise_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = init_project(tmp_path / "own", "photos")
    check_recipes(project)
    check_recipes(Project(tmp_path))  # no project that init made
    monkeypatch.setattr(recipes, "RECIPES", {**RECIPES, "search": 9})
    monkeypatch.setattr("headstart.projects.create.RECIPES", {**RECIPES, "search": 9})
    with pytest.raises(ParamsError, match="those of search are others: run `headstart upgrade`"):
        check_recipes(project)
    assert upgrade_project(project) == ["search"]
    assert upgrade_project(project) == []
    check_recipes(project)
    changed = re.findall(r"  (\w+): 9", (project.root / LOCK).read_text(encoding="utf-8"))
    assert changed == ["search"]


@pytest.mark.parametrize("text", ["", "<<<<<<< HEAD\n", "stages: 3\n", "[]"])
def test_a_lock_that_is_none_is_told_and_mended(tmp_path: Path, text: str) -> None:
    project = init_project(tmp_path / "own", "photos")
    (project.root / LOCK).write_text(text, encoding="utf-8")
    with pytest.raises(ParamsError, match="run `headstart upgrade`"):
        check_recipes(project)
    assert upgrade_project(project) == list(RECIPES)
    check_recipes(project)


def test_upgrade_needs_such_a_project(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"has a headstart\.lock, but .* has none"):
        upgrade_project(Project(tmp_path))


def test_commands_say_what_comes_next(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "headstart"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def said(*arguments: str, status: int = 0) -> str:
        done = subprocess.run(
            [*command, *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    assert said("--version") == f"headstart {headstart.__version__}\n"
    assert "cp -r ~/pictures data/images" in said("init", "own")
    assert load_params(tmp_path / "own" / "params.yaml").data.source == "data/images"
    assert "holds something" in said("init", "own", status=1)
    assert "one folder of images per class, but" in said("run", "nothing", status=1)
    (tmp_path / "others").mkdir()
    told = said("run", "others", "--project", "own", status=1)
    assert "a project is resumed with its own images" in told
    assert "name another --project" in told
    shutil.rmtree(tmp_path / "own")
