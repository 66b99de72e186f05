"""Where runs go: the project's own database, whatever its path, and after the checkout moved."""

import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from sqlalchemy.engine import make_url

from headstart.common.errors import TrackingError
from headstart.common.paths import Project, sqlite_uri
from headstart.tracking.model_uri import model_file
from headstart.tracking.registry import Registry
from headstart.tracking.store import open_store, tracking_uri
from tests.tracking.conftest import git, new_model_run


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40))
@settings(deadline=None)
def test_a_sqlite_uri_means_the_path_it_was_made_of(name: str) -> None:
    path = Path(f"/base/{name}/mlflow.db")
    url = make_url(sqlite_uri(path))
    assert url.database == str(path)
    assert not url.query


def test_an_ordinary_path_keeps_the_uri_that_everybody_knows() -> None:
    assert sqlite_uri(Path("/home/me/my café #1/mlflow.db")) == (
        "sqlite:////home/me/my café #1/mlflow.db"
    )


def test_nothing_is_written_beside_a_checkout_of_any_name(workspace: Project) -> None:
    (workspace.root / "mlflow.db").unlink()
    _run_with_a_model(workspace)
    assert [path.name for path in workspace.root.parent.iterdir()] == [workspace.root.name]
    assert (workspace.root / "mlflow.db").is_file()
    assert list((workspace.root / "mlruns").rglob("model.h5")) != []


def test_database_and_state_are_their_owners(workspace: Project) -> None:
    (workspace.root / "mlflow.db").unlink()
    before = os.umask(0o022)
    try:
        open_store(workspace.root)
    finally:
        os.umask(before)
    modes = {
        name: (workspace.root / name).stat().st_mode & 0o777
        for name in ("mlflow.db", "mlruns", ".headstart")
    }
    assert modes == {"mlflow.db": 0o600, "mlruns": 0o700, ".headstart": 0o700}


def test_a_database_that_a_group_shares_stays_the_groups(workspace: Project) -> None:
    (workspace.root / "mlflow.db").chmod(0o664)
    open_store(workspace.root)
    assert (workspace.root / "mlflow.db").stat().st_mode & 0o777 == 0o660


def _run_with_a_model(project: Project) -> str:
    """Log and register a model, by our experiment; returns the run's id."""
    folder = project.root / "models" / "serving"
    (folder / "artifacts").mkdir(parents=True, exist_ok=True)
    (folder / "MLmodel").write_text("flavors: {}\nmodel_uuid: x\n")
    (folder / "artifacts" / "model.h5").write_bytes(b"the model")
    with new_model_run(project, {}) as run:
        run.log_model(folder)
        run.log_artifact(folder / "MLmodel")
    registry = Registry(run.store, "headstart")
    registry.add(run.run_id, "aa", "a description", {})
    registry.promote("1", "first")
    return run.run_id


def _run_of_mlflows_own(project: Project) -> str:
    """A run as `mlflow run` opens it, with a plain path as its location; returns its id."""
    client = MlflowClient(tracking_uri(project.root))
    with sqlite3.connect(project.root / "mlflow.db") as database:
        location = str(project.root / "mlruns" / "0")
        database.execute(
            "UPDATE experiments SET artifact_location = ? WHERE experiment_id = 0", [location]
        )
    run_id = str(client.create_run("0").info.run_id)
    (project.root / "mlruns" / "0" / run_id / "artifacts").mkdir(parents=True)
    (project.root / "mlruns" / "0" / run_id / "artifacts" / "a.txt").write_text("hello")
    return run_id


@pytest.mark.parametrize("is_copied", [False, True])
def test_artifacts_come_along_when_a_checkout_moves(
    workspace: Project,
    tmp_path: Path,
    is_copied: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours, mlflows = _run_with_a_model(workspace), _run_of_mlflows_own(workspace)
    moved = Project(tmp_path / "to" / "another 100% place?")
    if is_copied:
        shutil.copytree(workspace.root, moved.root)
    else:
        moved.root.parent.mkdir()
        workspace.root.rename(moved.root)
    monkeypatch.chdir(moved.root)
    capsys.readouterr()

    client = open_store(moved.root).client
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    assert f"recorded in {workspace.root}/mlruns are in {moved.root}/mlruns" in said
    with model_file("models:/headstart@champion", moved.root) as path:
        assert path.read_bytes() == b"the model"
    assert [found.path for found in client.list_artifacts(ours)] == ["MLmodel"]
    read = client.download_artifacts(mlflows, "a.txt", str(tmp_path))
    assert Path(read).read_text() == "hello"

    new = _run_with_a_model(moved)
    assert (moved.root / "mlruns" / new / "artifacts" / "MLmodel").is_file()
    assert not (workspace.root / "mlruns" / new).exists()
    capsys.readouterr()
    open_store(moved.root)
    assert capsys.readouterr().err == ""


def test_artifacts_that_are_kept_elsewhere_stay_there(
    workspace: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "large disk" / "mlruns"
    store = open_store(workspace.root)
    other = store.client.create_experiment("other", artifact_location=elsewhere.as_uri())
    run_id = store.client.create_run(other).info.run_id
    store.client.log_text(run_id, "hello", "a.txt")
    _run_with_a_model(workspace)
    open_store(workspace.root)
    assert store.client.get_run(run_id).info.artifact_uri.startswith(elsewhere.as_uri())
    assert capsys.readouterr().err == ""


def test_a_store_that_is_away_is_named_without_credentials(
    workspace: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:pw@127.0.0.1:9")
    with pytest.raises(TrackingError, match="tracking store must answer") as caught:
        open_store(workspace.root)
    assert "http://127.0.0.1:9" in str(caught.value)
    assert "pw" not in str(caught.value)


def test_a_deleted_experiment_is_named(workspace: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(workspace.root)
    store.client.delete_experiment(store.experiment_id)
    with pytest.raises(TrackingError, match="is deleted: restore it"):
        open_store(workspace.root)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", store.experiment_id)
    with pytest.raises(TrackingError, match="is deleted: restore it"):
        open_store(workspace.root)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MLFLOW_EXPERIMENT_ID", "99"),
        ("MLFLOW_EXPERIMENT_ID", "headstart"),
        ("MLFLOW_EXPERIMENT_ID", "9" * 30),
        ("MLFLOW_EXPERIMENT_NAME", "x" * 600),
        ("MLFLOW_TRACKING_URI", "foo://x"),
        ("MLFLOW_TRACKING_URI", "mlruns"),
        ("MLFLOW_TRACKING_URI", "http://["),
        ("MLFLOW_TRACKING_URI", "nodatabase+nodriver://x/y"),
    ],
)
def test_a_variable_that_cannot_be_meant_is_named_with_what_was_got(
    workspace: Project, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(TrackingError, match=rf"{variable} must be .*unset it") as caught:
        open_store(workspace.root)
    assert value in str(caught.value)
    assert "must answer" not in str(caught.value)


def test_two_variables_that_name_two_experiments_are_an_error(
    workspace: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(workspace.root)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "headstart")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", store.experiment_id)
    assert open_store(workspace.root).experiment_id == store.experiment_id
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    with pytest.raises(TrackingError, match="must name one experiment"):
        open_store(workspace.root)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "custom_model_development"),
        ("genai_development_inferred", "custom_model_development"),
        ("genai_development", "genai_development"),
    ],
)
def test_an_experiment_opens_as_model_training_unless_a_person_chose(
    workspace: Project, before: str | None, after: str
) -> None:
    client = MlflowClient(tracking_uri(workspace.root))
    made = client.create_experiment("headstart")
    if before is not None:
        client.set_experiment_tag(made, "mlflow.experimentKind", before)
    open_store(workspace.root)
    assert client.get_experiment(made).tags["mlflow.experimentKind"] == after


def test_a_worktree_uses_the_main_checkouts_database(workspace: Project, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    git(workspace.root, "worktree", "add", "-q", str(tree))
    assert tracking_uri(tree) == tracking_uri(workspace.root)
