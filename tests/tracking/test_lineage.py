"""Code as git knows it, where clean means that not a byte differs, and data as DVC knows it."""

import hashlib
import os
from pathlib import Path

import pytest

from headstart.common.paths import Project
from headstart.tracking.lineage import DvcState, gather_lineage, git_state
from tests.tracking.conftest import git


def test_a_fresh_commit_is_clean(workspace: Project) -> None:
    state = git_state(workspace.root)
    assert state.commit == git(workspace.root, "rev-parse", "HEAD").strip()
    assert state.branch == "main"
    assert state.diff == ""


def test_an_edit_of_the_same_length_and_time_is_seen(workspace: Project) -> None:
    before = workspace.params.stat()
    workspace.params.write_text("seed: 2\n")
    os.utime(workspace.params, ns=(before.st_atime_ns, before.st_mtime_ns))
    state = git_state(workspace.root)
    assert "-seed: 1" in state.diff
    assert "+seed: 2" in state.diff


def test_untracked_source_counts_and_other_untracked_files_do_not(workspace: Project) -> None:
    (workspace.root / "notes.txt").write_text("mine")
    assert git_state(workspace.root).diff == ""
    (workspace.root / "src" / "new.py").write_text("y = 1\n")
    assert "src/new.py" in git_state(workspace.root).diff


def test_dvc_lock_and_outputs_are_ignored_when_asked(workspace: Project) -> None:
    (workspace.root / "dvc.lock").write_text("schema: '2.0'\n")
    assert git_state(workspace.root).diff != ""
    assert git_state(workspace.root, ignoring={"dvc.lock"}).diff == ""


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
    assert (state.commit, state.branch, state.diff) == (None, None, "")


def test_outputs_before_a_stage_follow_the_graph(workspace: Project) -> None:
    state = DvcState(workspace.root)
    found = [(output.stage, output.path) for output in state.outputs_before("evaluate")]
    assert found == [("fetch", "data/fetched"), ("extract", "data/features.h5")]
    assert state.outputs_before("fetch") == []


def test_inputs_carry_the_hashes_of_dvc_lock(workspace: Project) -> None:
    (found,) = DvcState(workspace.root).inputs("train")
    md5 = hashlib.md5(b"features", usedforsecurity=False).hexdigest()
    assert (found.path, found.stage, found.md5) == ("data/features.h5", "extract", md5)


def test_a_file_made_by_hand_is_hashed_itself(workspace: Project) -> None:
    workspace.features.write_bytes(b"other features")
    (found,) = DvcState(workspace.root).inputs("train")
    assert found.md5 == hashlib.md5(b"other features", usedforsecurity=False).hexdigest()


def test_output_paths_include_metrics(workspace: Project) -> None:
    assert "reports/metrics.json" in DvcState(workspace.root).output_paths()


def test_the_source_is_known(workspace: Project) -> None:
    source = DvcState(workspace.root).source()
    assert source is not None
    assert (source.path, source.md5) == ("data/own", "aa.dir")


def test_tags_name_the_experiment_the_code_and_the_machine(
    workspace: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "wet-cat")
    monkeypatch.setenv("DVC_STAGE", "train")
    tags = gather_lineage(workspace, "train", {"seed": "3"}).tags
    assert (tags["dvc.exp_name"], tags["dvc.stage"], tags["seed"]) == ("wet-cat", "train", "3")
    assert "dvc.baseline_rev" not in tags
    assert (tags["git.branch"], tags["git.dirty"]) == ("main", "false")
    assert tags["mlflow.source.git.commit"] == tags["git.commit"]
    assert tags["version.keras"]
    assert int(tags["machine.cores"]) >= 1
