"""`tools/environment`, with the real tools, and a package or two instead of all."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import Workspace, make_workspace

pytestmark = [pytest.mark.slow, pytest.mark.ci]


def _only(lock: str, name: str) -> str:
    """The entry of one package in a lock file, with its hashes."""
    found = re.search(rf"^{name}==(?:.*\\\n)*.*\n", lock, re.MULTILINE)
    assert found is not None
    return found.group()


def _setup(workspace: Workspace) -> str:
    return workspace.run("tools/environment", "cpu")


def test_an_environment_of_a_moved_or_copied_checkout_is_made_anew(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "my café #1 50%20?x", tmp_path / "cache")
    lock = workspace.root / "requirements" / "cpu.txt"
    lock.write_text(_only(lock.read_text(encoding="utf-8"), "setuptools"))
    (workspace.root / "requirements" / "data.txt").write_text("")
    assert "made in" not in _setup(workspace)
    assert _setup(workspace) == ""

    moved = Workspace(workspace.root.rename(tmp_path / "moved"), workspace.cache)
    said = _setup(moved)
    assert f"environment: .venv was made in {workspace.root}/.venv/bin; making it anew" in said
    assert _setup(moved) == ""
    where = "import headstart; print(headstart.__file__)"
    python = str(moved.root / ".venv" / "bin" / "python")
    assert moved.run(python, "-c", where).strip() == f"{moved.root}/src/headstart/__init__.py"

    copied = Workspace(tmp_path / "copied", workspace.cache)
    subprocess.run(["cp", "-R", str(moved.root), str(copied.root)], check=True)
    assert f".venv was made in {moved.root}/.venv/bin; making it anew" in _setup(copied)
