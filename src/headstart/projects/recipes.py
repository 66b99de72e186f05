"""By which recipes the installed package computes: what headstart.lock of a project names.

The stages of a project depend on their line of headstart.lock in place of the source, so that
another version of the package runs again what it computes otherwise, and no more.
"""

from pathlib import Path
from types import MappingProxyType

import headstart
from headstart.common import files
from headstart.common.errors import ParamsError
from headstart.common.paths import Project

LOCK = "headstart.lock"
# A stage's number is raised with every change after which the same inputs give other results, or
# files of another form.
RECIPES = MappingProxyType(
    {
        "fetch": 1,
        "ingest": 1,
        "pack": 1,
        "extract": 1,
        "search": 1,
        "train": 1,
        "package": 3,
        "evaluate": 3,
        "register": 2,
    }
)


def write_recipes(path: Path) -> None:
    """Write headstart.lock for the installed package."""
    lines = [
        "# By which recipes the stages compute. Written by `headstart upgrade`; commit it.",
        f"headstart: {headstart.__version__}",
        "stages:",
        *(f"  {stage}: {number}" for stage, number in RECIPES.items()),
    ]
    files.write_text(path, "\n".join(lines) + "\n")


def recipes_of(path: Path) -> dict[str, object]:
    """Return the recipe of each stage that a headstart.lock names.

    Raises:
        ParamsError: it is no such file (a merge may leave its marks in it).
    """
    try:
        content = files.read_yaml(path)
        return dict(content["stages"])
    except (ValueError, KeyError, TypeError, ParamsError):
        raise ParamsError(
            f"{LOCK} must name a recipe for each stage, but it does not: run `headstart upgrade`"
        ) from None


def check_recipes(project: Project) -> None:
    """Refuse to compute by other recipes than headstart.lock names, where a project has one.

    Raises:
        ParamsError: naming the stages.
    """
    path = project.root / LOCK
    if not path.exists():
        return
    noted = recipes_of(path)
    if other := [stage for stage, number in RECIPES.items() if noted.get(stage) != number]:
        raise ParamsError(
            f"the recipes in {LOCK} must be those of the installed headstart "
            f"{headstart.__version__}, but those of {', '.join(other)} are others: run `headstart "
            "upgrade`, then `dvc repro`, or install the version that it names"
        )
