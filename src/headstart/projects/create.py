"""`headstart init` and `headstart upgrade`: the files of a project of one's own.

A project is a folder with dvc.yaml, params.yaml and MLproject, in git and in DVC. Its commands are
those of the installed package: it holds no source.
"""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import MappingProxyType

from headstart.common import files
from headstart.common.errors import ParamsError
from headstart.common.paths import Project
from headstart.dataset.splits import write_thresholds
from headstart.projects.recipes import LOCK, RECIPES, recipes_of, write_recipes

# Name in the package → where it goes: a package does not keep files that begin with a dot, and DVC
# would take any dvc.yaml for a pipeline of this repository.
_FILES = {
    "dvc.yaml.in": "dvc.yaml",
    "params.yaml.in": "params.yaml",
    "MLproject": "MLproject",
    "README.md": "README.md",
    "gitignore": ".gitignore",
    "dvcignore": ".dvcignore",
    "data-gitignore": "data/.gitignore",
    "workflow.yaml": ".github/workflows/headstart.yaml",
}
_OPTIONAL = ("workflow.yaml",)
DVC = (sys.executable, "-m", "dvc")
_DVC_SETTINGS: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "core": {"analytics": False, "check_update": False},
        "cache": {"type": ["reflink", "hardlink", "copy"]},
    }
)


def init_project(folder: Path, source: str, *, workflow: bool = False) -> Project:
    """Make a project in `folder`, which must not be there or be empty.

    Args:
        source: what `data.source` becomes: a folder of images, which need not be there yet, or a
            URL. A path is taken from the working directory.
        workflow: add a GitHub workflow that runs the pipeline on a pull request.

    Raises:
        ParamsError: there is something in `folder`, or it lies in a checkout of Headstart itself.
    """
    folder = Path(os.path.normpath(folder.absolute()))  # links stay as the user has them
    for above in (folder, *folder.parents):
        if (above / "src" / "headstart" / "cli.py").is_file():
            raise ParamsError(
                "a project of one's own must lie outside of Headstart's own repository, but "
                f"{folder} is in {above}: name another folder, or work with that dvc.yaml itself"
            )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ParamsError(
            f"a project is made in a new or empty folder, but {folder} holds something: name "
            "another"
        )
    folder.mkdir(parents=True, exist_ok=True)
    shown = source
    if "://" not in source:
        path = Path(os.path.normpath(Path(source).absolute()))
        # Relative only inside of the project: experiments run in copies of it elsewhere.
        inside = path.relative_to(folder) if folder in path.parents else path
        shown = inside.as_posix()
    template = resources.files("headstart.projects") / "template"
    for name, target in _FILES.items():
        if name in _OPTIONAL and not workflow:
            continue
        text = (template / name).read_text(encoding="utf-8")
        text = text.replace("{{source}}", _quoted(shown)).replace("{{name}}", _quoted(folder.name))
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        files.write_text(folder / target, text)
    write_thresholds(folder / "data" / "splits.csv", {})
    in_git = _under_control(folder)
    # Last: what has it is a whole project, which `headstart run` resumes.
    write_recipes(folder / LOCK)
    if in_git:
        _run(["git", "add", "--all", "."], folder)
    return Project(folder)


def upgrade_project(project: Project) -> list[str]:
    """Write headstart.lock for the installed package; returns the stages whose recipe is another.

    Raises:
        ParamsError: the project has no headstart.lock.
    """
    path = project.root / LOCK
    if not path.is_file():
        raise ParamsError(
            f"a project that `headstart init` made has a {LOCK}, but {project.root} has none: work "
            "in such a project, or make one"
        )
    try:
        noted = recipes_of(path)
    except ParamsError:
        noted = {}
    write_recipes(path)
    return [stage for stage, number in RECIPES.items() if noted.get(stage) != number]


def _quoted(text: str) -> str:
    """A YAML scalar."""
    return "'" + text.replace("'", "''") + "'"


def _under_control(folder: Path) -> bool:
    """Put the project into git and DVC; without git, into DVC alone. Return whether into git."""
    # DVC in this process: each of its commands takes a second to start.
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    # What to do next, which `headstart init` says itself.
    logging.getLogger("dvc").setLevel(logging.WARNING)
    has_git = shutil.which("git") is not None
    is_inside = False
    if has_git:
        inside = _run(["git", "rev-parse", "--is-inside-work-tree"], folder, check=False)
        is_inside = inside.returncode == 0
        if not is_inside:
            _run(["git", "init", "--quiet"], folder)
    try:
        with (
            Repo.init(str(folder), no_scm=not has_git, subdir=is_inside) as repo,
            repo.config.edit() as config,
        ):
            for section, values in _DVC_SETTINGS.items():
                config.setdefault(section, {}).update(values)
    except DvcException as error:
        raise ParamsError(f"`dvc init` must work in {folder}, but it said: {error}") from None
    return has_git


def _run(
    command: Sequence[str], folder: Path, *, check: bool = True
) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if check and done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no reason"]
        raise ParamsError(f"`{' '.join(command)}` must work in {folder}, but it said: {said[-1]}")
    return done
