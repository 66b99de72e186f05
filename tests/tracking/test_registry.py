"""Versions, champions and the way back, in a real registry."""

from pathlib import Path

import pytest

from headstart.common.errors import TrackingError
from headstart.common.paths import Project
from headstart.tracking.registry import CHALLENGER, CHAMPION, Registry
from tests.tracking.conftest import new_model_run


def _registry_with(project: Project, tmp_path: Path, *hashes: str) -> Registry:
    folder = tmp_path / "serving"
    folder.mkdir()
    (folder / "MLmodel").write_text("flavors: {}\nmodel_uuid: x\n")
    (folder / "artifacts").mkdir()
    (folder / "artifacts" / "model.h5").write_bytes(b"model")
    registry = None
    for model_sha256 in hashes:
        with new_model_run(project, {}) as run:
            run.log_model(folder)
        registry = Registry(run.store, "animals")
        registry.add(run.run_id, model_sha256, "a description", {"git.commit": "c0"})
    assert registry is not None
    return registry


def test_a_version_knows_its_model_and_run(workspace: Project, tmp_path: Path) -> None:
    registry = _registry_with(workspace, tmp_path, "aa")
    version = registry.version_of("aa")
    assert version is not None
    assert version.source is not None
    assert version.source.startswith("models:/m-")
    assert version.description == "a description"
    assert version.tags["git.commit"] == "c0"
    assert registry.version_of("bb") is None


def test_a_version_is_made_from_a_copy_of_the_workspace(
    workspace: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a queued experiment: MLflow's own default database is another one there."""
    elsewhere = tmp_path / "copy"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("DVC_ROOT", str(workspace.root))
    assert _registry_with(workspace, tmp_path, "aa").version_of("aa") is not None
    assert list(elsewhere.iterdir()) == []


def test_crown_and_rollback_keep_a_history(workspace: Project, tmp_path: Path) -> None:
    registry = _registry_with(workspace, tmp_path, "aa", "bb")
    assert registry.holder(CHAMPION) is None
    registry.promote("1", "first")
    registry.set_alias(CHALLENGER, "2")
    registry.promote("2", "better")
    assert registry.holder(CHALLENGER) is None
    assert registry.roll_back() == ("2", "1")
    champion = registry.holder(CHAMPION)
    assert champion is not None
    assert str(champion.version) == "1"
    assert [(r.version, r.why) for r in registry.history()] == [
        ("1", "first"),
        ("2", "better"),
        ("1", "rolled back from version 2"),
    ]


def test_a_rollback_passes_over_what_was_rolled_back_from(
    workspace: Project, tmp_path: Path
) -> None:
    registry = _registry_with(workspace, tmp_path, "aa", "bb", "cc")
    for version in ("1", "2", "3"):
        registry.promote(version, "better")
    assert registry.roll_back() == ("3", "2")
    assert registry.roll_back() == ("2", "1")


def test_a_version_that_was_rolled_back_from_is_not_the_last_champion(
    workspace: Project, tmp_path: Path
) -> None:
    registry = _registry_with(workspace, tmp_path, "aa", "bb", "cc")

    def former() -> list[str]:
        return [str(version.version) for version in registry.former_champions()]

    assert former() == []
    for version in ("1", "2", "1", "3"):
        registry.promote(version, "better")
    assert former() == ["3", "1", "2"]
    registry.roll_back()
    assert former() == ["1", "2"]
    registry.promote("3", "promoted by hand")
    assert former() == ["3", "1", "2"]
    registry.store.client.delete_model_version("animals", "2")
    assert former() == ["3", "1"]


def test_a_rollback_without_an_earlier_champion(workspace: Project, tmp_path: Path) -> None:
    registry = _registry_with(workspace, tmp_path, "aa")
    with pytest.raises(TrackingError, match="needs a champion"):
        registry.roll_back()
    registry.promote("1", "first")
    with pytest.raises(TrackingError, match="version 1 of 'animals' is the first"):
        registry.roll_back()


def test_an_unknown_version_lists_those_there_are(workspace: Project, tmp_path: Path) -> None:
    registry = _registry_with(workspace, tmp_path, "aa", "bb")
    with pytest.raises(TrackingError, match="got '7'; there are: 1, 2"):
        registry.promote("7", "by hand")


def test_a_run_without_a_model_cannot_be_registered(workspace: Project) -> None:
    with new_model_run(workspace, {}) as run:
        pass
    with pytest.raises(TrackingError, match="has none: run `headstart sync`"):
        Registry(run.store, "animals").add(run.run_id, "aa", "d", {})
