"""What git and DVC refer to, asked of real repositories."""

from pathlib import Path

import pytest
from dvc.repo import Repo

from headstart.common import files
from headstart.common.paths import Project
from headstart.tracking import dvc_experiments as dvc
from tests.tracking.conftest import git

_STAGE = """stages:
  train:
    cmd: "true"
    params: [seed]
    outs: [models/run.json]
"""


def _commit(repo: Repo, root: Path, run_id: str) -> None:
    files.write_json(root / "models" / "run.json", {"run_id": run_id})
    (root / "params.yaml").write_text(f"seed: {ord(run_id[0])}\n")
    repo.commit(force=True)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC project in a folder of a git repository, with a commit and an experiment."""
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "t")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "t@example.invalid")
    git(tmp_path, "init", "-q", "-b", "main")
    root = tmp_path / "parts"
    (root / "models").mkdir(parents=True)
    (root / "dvc.yaml").write_text(_STAGE)
    monkeypatch.chdir(root)
    with Repo.init(str(root), subdir=True) as repo:
        for run_id in ("a", "b"):
            _commit(repo, root, run_id)
            git(tmp_path, "add", ".")
            git(tmp_path, "commit", "-q", "-m", run_id)
        _commit(repo, root, "c")
        repo.experiments.save(name="new")
        git(tmp_path, "checkout", "-q", "--", ".")
        repo.checkout(force=True)
    return root


def test_every_reference_is_known_by_its_run(repository: Path) -> None:
    git(repository, "tag", "old", "HEAD~1")
    found = {(each.ref, each.experiment): each.run_id for each in dvc.runs_of_refs(repository)}
    (experiment,) = [ref for ref, name in found if name == "new"]
    assert found == {
        ("HEAD", ""): "b",
        ("refs/heads/main", ""): "b",
        ("refs/tags/old", ""): "a",
        (experiment, "new"): "c",
    }
    assert dvc.experiment_names(repository) == {"new"}


def test_only_what_no_commit_experiment_or_worktree_needs_is_unused(
    repository: Path, tmp_path: Path
) -> None:
    (experiment,) = [each.ref for each in dvc.runs_of_refs(repository) if each.experiment]
    assert dvc.unused_objects(repository, kept=[experiment], commits=[], hashes=[]) == []
    found = dvc.unused_objects(repository, kept=[], commits=[], hashes=[])
    assert isinstance(found, list)
    (unused,) = found
    assert unused.path.read_text() == '{\n  "run_id": "c"\n}\n'
    assert unused.n_bytes == unused.path.stat().st_size
    md5 = unused.path.parent.name + unused.path.name
    assert dvc.unused_objects(repository, kept=[], commits=[], hashes=[md5]) == []
    commit = git(repository, "rev-parse", experiment).strip()
    assert dvc.has_commit(repository, commit)
    assert dvc.unused_objects(repository, kept=[], commits=[commit, "none"], hashes=[]) == []
    tree = tmp_path / "tree"
    git(repository, "worktree", "add", "-q", "--detach", str(tree), commit)
    assert dvc.worktrees(repository) == [repository, tree / "parts"]
    assert dvc.unused_objects(repository, kept=[], commits=[], hashes=[]) == []
    git(repository, "worktree", "remove", "--force", str(tree))
    dvc.remove_experiments(repository, [experiment])
    assert dvc.experiment_names(repository) == set()
    dvc.remove_objects(repository, found)
    assert dvc.unused_objects(repository, kept=[], commits=[], hashes=[]) == []


def test_a_file_that_is_linked_elsewhere_frees_nothing(repository: Path, tmp_path: Path) -> None:
    found = dvc.unused_objects(repository, kept=[], commits=[], hashes=[])
    assert isinstance(found, list)
    (tmp_path / "link").hardlink_to(found[0].path)
    again = dvc.unused_objects(repository, kept=[], commits=[], hashes=[])
    assert isinstance(again, list)
    assert [each.n_bytes for each in again] == [0]


def test_outside_of_git_there_is_nothing_to_say(tmp_path: Path) -> None:
    project = Project(tmp_path)
    assert not dvc.is_dvc_repository(project.root)
    assert dvc.worktrees(tmp_path) == [tmp_path]
    assert dvc.experiment_names(tmp_path) == set()
    assert "no project of git and DVC" in str(
        dvc.unused_objects(tmp_path, kept=[], commits=[], hashes=[])
    )
