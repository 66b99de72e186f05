"""Stage package on a small workspace: the folder, and what the model's run holds of it."""

import shutil
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from mlflow.entities import LoggedModel, Run

import headstart.serving.package
from headstart.common.paths import Project
from headstart.tracking.runs import read_run_id
from headstart.tracking.store import open_store
from tests.conftest import REPOSITORY
from tests.models.conftest import make_workspace
from tests.stages.conftest import run_package, run_train


def logged_models(project: Project) -> list[LoggedModel]:
    """The logged models of the workspace's database, oldest first."""
    store = open_store(project.root)
    found = store.client.search_logged_models([store.experiment_id])
    return sorted(found, key=lambda model: model.creation_timestamp)


def folder_of(logged: LoggedModel) -> Path:
    """Where a logged model's artifacts lie on this machine."""
    return Path(unquote(urlparse(logged.artifact_location).path))


def recorded_runs(project: Project) -> list[Run]:
    """All runs of the workspace's database."""
    store = open_store(project.root)
    return list(store.client.search_runs([store.experiment_id]))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but MLmodel, which holds an id and a time."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "MLmodel"
    }


def test_the_run_holds_the_package_and_the_model_file_once(trained: Project) -> None:
    (logged,) = logged_models(trained)
    (run,) = recorded_runs(trained)
    assert run.info.run_id == read_run_id(trained.run) == logged.source_run_id
    assert contents(folder_of(logged)) == contents(trained.serving)
    package = trained.serving / "artifacts" / "model.h5"
    assert package.read_bytes() == trained.model.read_bytes()
    client = open_store(trained.root).client
    names = [artifact.path for artifact in client.list_artifacts(run.info.run_id)]
    assert names.count("model.h5") == 1
    assert "model" not in names


def test_the_logged_model_carries_the_params_and_tags_of_its_run(trained: Project) -> None:
    (logged,), (run,) = logged_models(trained), recorded_runs(trained)
    assert logged.params == run.data.params
    for name in ("fingerprint", "seed", "git.commit", "version.keras"):
        assert logged.tags[name] == run.data.tags[name], name
    assert [name for name in logged.tags if name.startswith("mlflow.note")] == []


def test_the_package_and_the_logged_model_name_no_path_of_this_machine(trained: Project) -> None:
    (logged,) = logged_models(trained)
    for package in (trained.serving, folder_of(logged)):
        paths = [path for path in package.rglob("*") if path.is_file()]
        assert len(paths) > 8
        for path in paths:
            content = path.read_bytes()
            for here in (trained.root, REPOSITORY, Path.home()):
                assert f"{here}/".encode() not in content, (path, here)


def test_an_edited_server_is_packaged_and_logged_anew_in_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_workspace(tmp_path)
    run_train(project)
    before = project.model.read_bytes()
    for _ in range(2):
        run_package(project)
        assert len(logged_models(project)) == 1, "the same package is logged once"
    edited = tmp_path / ".edited"
    here = Path(headstart.serving.package.__file__).parent
    shutil.copytree(here, edited)
    with (edited / "pyfunc_model.py").open("a") as stream:
        stream.write("# edited\n")
    monkeypatch.setattr(headstart.serving.package, "__file__", str(edited / "package.py"))
    run_package(project)
    first, second = logged_models(project)
    (run,) = recorded_runs(project)
    assert first.source_run_id == second.source_run_id == run.info.run_id
    assert run.data.tags["headstart.model_id"] == second.model_id
    assert (folder_of(second) / "pyfunc_model.py").read_text().endswith("# edited\n")
    assert project.model.read_bytes() == before
