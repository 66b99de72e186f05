"""Clean means: not a byte differs from HEAD."""

import os
from pathlib import Path

from headstart.common.paths import Project
from headstart.tracking.git_state import git_state
from tests.tracking.conftest import git


def test_a_fresh_commit_is_clean(workspace: Project) -> None:
    state = git_state(workspace.root)
    assert state.commit == git(workspace.root, "rev-parse", "HEAD").strip()
    assert state.branch == "main"
    assert not state.is_dirty


def test_an_edit_of_the_same_length_and_time_is_seen(workspace: Project) -> None:
    before = workspace.params.stat()
    workspace.params.write_text("seed: 2\n")
    os.utime(workspace.params, ns=(before.st_atime_ns, before.st_mtime_ns))
    state = git_state(workspace.root)
    assert "-seed: 1" in state.diff
    assert "+seed: 2" in state.diff


def test_untracked_source_counts_and_other_untracked_files_do_not(workspace: Project) -> None:
    (workspace.root / "notes.txt").write_text("mine")
    assert not git_state(workspace.root).is_dirty
    (workspace.root / "src" / "new.py").write_text("y = 1\n")
    assert "src/new.py" in git_state(workspace.root).diff


def test_dvc_lock_and_outputs_are_ignored_when_asked(workspace: Project) -> None:
    (workspace.root / "dvc.lock").write_text("schema: '2.0'\n")
    assert git_state(workspace.root).is_dirty
    assert not git_state(workspace.root, ignoring={"dvc.lock"}).is_dirty


def test_the_diff_applies_to_the_commit(workspace: Project, tmp_path: Path) -> None:
    (workspace.root / "src" / "code.py").write_bytes(b"x = '\xff\x00'\n")
    (workspace.root / "src" / "new.py").write_text("y = 1\n")
    state = git_state(workspace.root)
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(workspace.root), str(clone))
    patch = tmp_path / "patch"
    patch.write_bytes(state.diff.encode(errors="surrogateescape"))
    git(clone, "apply", "--binary", str(patch))
    assert (clone / "src" / "code.py").read_bytes() == b"x = '\xff\x00'\n"
    assert (clone / "src" / "new.py").read_text() == "y = 1\n"


def test_the_users_index_is_left_alone(workspace: Project) -> None:
    (workspace.root / "src" / "new.py").write_text("y = 1\n")
    index = (workspace.root / ".git" / "index").read_bytes()
    git_state(workspace.root)
    assert (workspace.root / ".git" / "index").read_bytes() == index


def test_no_repository_is_no_error(tmp_path: Path) -> None:
    state = git_state(tmp_path)
    assert (state.commit, state.branch, state.is_dirty) == (None, None, False)
