"""Which stages an edit runs again, by `dvc status` in a scratch copy whose stages have all run."""

import compileall
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from tests.e2e.conftest import Workspace, make_workspace, replace

ALL = (
    "fetch", "ingest", "pack", "extract", "search", "train", "package", "evaluate", "register",
)  # fmt: skip

# An edit in any file of a room.
BY_ROOM = {
    "common": ALL,
    "sources": ("fetch", "ingest"),
    "images": ("ingest", "pack", "extract", "train", "package", "evaluate"),
    "dataset": ("ingest", "pack", "extract", "train", "package", "evaluate", "register"),
    "cache": ("ingest", "pack", "extract"),
    "encoders": ("extract", "train", "package", "evaluate", "register"),
    "features": ("extract", "search", "train", "evaluate", "register"),
    "heads": ("search", "train", "evaluate"),
    "search": ("search",),
    "models": ("train", "package", "evaluate", "register"),
    "training": ("train",),
    "evaluation": ("evaluate", "register"),
    "tracking": ("search", "train", "package", "evaluate", "register"),
    "serving": ("package",),
    "reports": ("ingest", "search", "evaluate"),
    "projects": (),
}
BY_FILE = {
    "encoders/catalogue.py": ("extract", "evaluate"),
    "dataset/splits.py": ("ingest",),
    "params/base.py": ALL,
    "params/data.py": ("fetch", "evaluate"),
    "params/ingest.py": ("ingest",),
    "params/extract.py": ("extract", "evaluate"),
    "params/head.py": ("search", "train", "evaluate"),
    "params/search.py": ("search",),
    "params/search_space.py": ("search",),
    "params/train.py": ("train",),
    "params/evaluate.py": ("evaluate",),
    "params/register.py": ("register",),
    "params/whole_file.py": (),
    "stages/checks.py": (),
    "stages/run_stage.py": ALL,
    "stages/package.py": ("package",),
    "cli.py": (),
    "mlproject.py": (),
}
BY_VALUE = {
    "seed: 0": ("ingest", "extract", "search", "train", "evaluate", "register"),
    "size_px: 224": ("ingest", "pack", "extract", "train"),
    "near_duplicate_bits: 4": ("ingest",),
    "n_trials: 32": ("search",),
    "n_bootstrap: 2000": ("evaluate",),
    "gate: better": ("register",),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A copy of this checkout whose dvc.lock says that all stages have run, with stand-ins."""
    base = tmp_path_factory.mktemp("finished")
    workspace = make_workspace(base / "headstart", base / "cache", small=False)
    for stage in yaml.safe_load((workspace.root / "dvc.yaml").read_text())["stages"].values():
        for entry in (*stage.get("outs", ()), *stage.get("metrics", ()), *stage.get("plots", ())):
            name = next(iter(entry)) if isinstance(entry, dict) else entry
            path = workspace.root / name
            # A folder where its name has no ending, as DVC cannot know what it will be either.
            path = path if path.suffix else path / "content"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
    workspace.run("dvc", "commit", "--force")
    return workspace


@pytest.fixture
def restored(finished: Workspace) -> Iterator[Workspace]:
    """The copy, with what the test edits written back after it."""
    edited = [finished.root / "params.yaml", *(finished.root / "src").rglob("*.py")]
    before = {path: path.read_bytes() for path in edited}
    yield finished
    for path, content in before.items():
        if path.read_bytes() != content:
            path.write_bytes(content)


def _changed(workspace: Workspace) -> set[str]:
    """Names of the stages that DVC would run; those after them run if these change an output."""
    with Repo(str(workspace.root)) as repo:
        # From another folder DVC names a stage by the path of its dvc.yaml, too.
        return {address.rpartition(":")[2] for address in repo.status()}


def _edit(path: Path) -> None:
    with path.open("a", encoding="utf-8") as stream:
        stream.write("# edited\n")


def test_nothing_is_to_run_although_python_has_cached_its_bytecode(finished: Workspace) -> None:
    assert compileall.compile_dir(str(finished.root / "src"), quiet=2)
    assert len(list((finished.root / "src").rglob("__pycache__/*.pyc"))) > 50
    assert "up to date" in finished.run("dvc", "status")


@pytest.mark.parametrize("room", BY_ROOM)
def test_an_edited_room_runs_the_stages_that_use_it(room: str, restored: Workspace) -> None:
    for path in (restored.root / "src" / "headstart" / room).glob("*.py"):
        _edit(path)
    assert _changed(restored) == set(BY_ROOM[room])


@pytest.mark.parametrize("file", BY_FILE)
def test_an_edited_file_runs_the_stages_that_use_it(file: str, restored: Workspace) -> None:
    _edit(restored.root / "src" / "headstart" / file)
    assert _changed(restored) == set(BY_FILE[file])


@pytest.mark.parametrize("value", BY_VALUE)
def test_a_changed_value_runs_the_stages_that_read_it(value: str, restored: Workspace) -> None:
    name = value.partition(":")[0]
    other = "not_worse_and_smaller" if name == "gate" else "128"
    replace(restored.root / "params.yaml", value, f"{name}: {other}")
    assert _changed(restored) == set(BY_VALUE[value])


def test_every_room_is_edited(repository: Path) -> None:
    rooms = {path.parent.name for path in repository.glob("src/headstart/*/__init__.py")}
    assert rooms - {"params", "stages"} == set(BY_ROOM)


def test_edited_thresholds_run_ingest_alone(finished: Workspace) -> None:
    """data/splits.csv is a dependency of ingest, which extends it, and an output of nothing."""
    splits = finished.root / "data" / "splits.csv"
    before = splits.read_bytes()
    try:
        splits.write_bytes(before + b"0,0.7,0.15,0.15,a,,0,0.7,0.85\n")
        assert _changed(finished) == {"ingest"}
    finally:
        splits.write_bytes(before)
    stages = yaml.safe_load((finished.root / "dvc.yaml").read_text())["stages"].values()
    assert "data/splits.csv" not in str([stage.get("outs") for stage in stages])
