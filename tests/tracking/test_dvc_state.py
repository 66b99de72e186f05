"""DVC's graph and hashes, read from its two files."""

import hashlib

import pytest

from headstart.common.paths import Project
from headstart.tracking.dvc_state import DvcState, experiment_tags


def test_upstream_follows_outputs_through_the_graph(workspace: Project) -> None:
    state = DvcState(workspace.root)
    assert state.upstream("evaluate") == ["fetch", "extract", "train"]
    assert state.upstream("fetch") == []


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


def test_experiment_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "wet-cat")
    monkeypatch.setenv("DVC_STAGE", "train")
    monkeypatch.delenv("DVC_EXP_BASELINE_REV", raising=False)
    assert experiment_tags() == {"dvc.exp_name": "wet-cat", "dvc.stage": "train"}
