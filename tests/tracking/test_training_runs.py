"""The run that a training opens or resumes, and its name, readable where MLflow's table cuts it."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import pytest

from headstart import mlproject
from headstart.common.errors import TrackingError
from headstart.common.paths import Project
from headstart.heads.config import BestHead
from headstart.params.head import HeadConfig
from headstart.params.whole_file import Params
from headstart.tracking.runs import Run, read_run_id
from headstart.tracking.store import open_store
from headstart.tracking.training_runs import (
    describe_head,
    open_training,
    run_name,
    source_name,
)

HEAD = describe_head(HeadConfig())


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("data/sources/animal-silhouettes.yaml", "animal-silhouettes"),
        ("data/own/", "own"),
        ("https://me@host/pictures.tar.gz?token=x", "pictures"),
        ("/home/ann/.photos", ".photos"),
    ],
)
def test_a_source_by_its_last_part(source: str, name: str) -> None:
    assert source_name(source) == name


def _named(**given: Any) -> str:
    return run_name(Params.model_validate(given, by_alias=True), "linear")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "animal-silhouettes · linear"),
        ({"seed": 3}, "seed=3 · animal-silhouettes · linear"),
        ({"data": {"source": "data/own"}}, "own · linear"),
        ({"train": {"learning_rate": 0.003}}, "learning_rate=0.003 · animal-silhouettes · linear"),
        # search has a patience too
        ({"train": {"patience": 16}}, "train.patience=16 · animal-silhouettes · linear"),
        (
            {"train": {"fine_tune": {"enabled": True}}},
            "fine_tune.enabled=True · animal-silhouettes · linear",
        ),
        # what is nearest to the model comes first
        (
            {"seed": 3, "search": {"n_trials": 9}, "train": {"seeds": 1}, "extract": {"views": 2}},
            "seeds=1 · n_trials=9 · views=2 · … · animal-silhouettes · linear",
        ),
        (
            {"extract": {"weights": "/a/long/folder/of/ann/weights.h5"}},
            "weights=weights.h5 · animal-silhouettes · linear",
        ),
        # neither how something is computed nor a database's address
        (
            {"search": {"workers": 2, "storage": "postgresql://ann:pw@host/studies"}},
            "animal-silhouettes · linear",
        ),
    ],
)
def test_what_differs_from_the_defaults_comes_first(given: dict[str, Any], name: str) -> None:
    assert _named(**given) == name


def test_dvcs_experiment_name_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "dopey-seal")
    assert _named(seed=3).startswith("dopey-seal · seed=3 · ")


def _given_run(
    project: Project, monkeypatch: pytest.MonkeyPatch, status: str, params: Mapping[str, str]
) -> str:
    """MLFLOW_RUN_ID as a shell holds it."""
    store = open_store(project.root)
    run_id = str(store.client.create_run(store.experiment_id).info.run_id)
    for name, value in params.items():
        store.client.log_param(run_id, name, value)
    store.client.set_terminated(run_id, status)
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    return run_id


def _open(project: Project) -> AbstractContextManager[Run]:
    """Open a training of three epochs, whose seed is 1."""
    project.params.write_text("seed: 1\ntrain: {epochs: 3}\n")
    best = BestHead(
        config=HeadConfig(), epochs=3, metric="accuracy", value=0.5, study="s", trial=4,
        batch_size=32,
    )  # fmt: skip
    recipe = {"runtime": "keras", "precision": "float32", "backbone": "small"}
    return open_training(project, best, recipe, "f00", 1)


@pytest.mark.parametrize(
    "params",
    [
        # `mlflow run -P` has logged its own text of the value.
        {"train.epochs": "3.0"},
        {},
    ],
)
def test_an_open_run_is_resumed(
    workspace: Project, monkeypatch: pytest.MonkeyPatch, params: dict[str, str]
) -> None:
    given = _given_run(workspace, monkeypatch, "RUNNING", params)
    with _open(workspace) as run:
        assert run.run_id == given
    store = open_store(workspace.root)
    (found,) = store.client.search_runs([store.experiment_id])
    assert found.data.params.items() >= {"seed": "1", "train.epochs": "3", **params}.items()
    assert found.data.tags["study"] == "s"
    assert found.info.status == "FINISHED"
    assert found.info.run_name == f"epochs=3 · seed=1 · animal-silhouettes · {HEAD}"
    assert f"Head: {HEAD}" in found.data.tags["mlflow.note.content"]
    assert read_run_id(workspace.run) == given


@pytest.mark.parametrize("point", ["extract", "search"])
def test_a_run_without_a_model_says_what_it_is(
    workspace: Project, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    given = _given_run(workspace, monkeypatch, "RUNNING", {})
    called: list[tuple[str, ...]] = []
    monkeypatch.setattr("headstart.mlproject._dvc", lambda _, *command: called.append(command))
    mlproject.run_entry_point(point, ["image.size_px=96"])
    assert called == [("exp", "run", "--temp", "-S++image.size_px=96", point)]
    found = open_store(workspace.root).client.get_run(given)
    assert found.info.run_name == f"size_px=96 · seed=1 · animal-silhouettes · {point}"
    assert found.data.tags["headstart.kind"] == point
    assert f"`dvc repro {point}`" in found.data.tags["mlflow.note.content"]


@pytest.mark.parametrize("point", ["extract", "search"])
def test_a_run_that_has_ended_is_not_written_to_by_another_entry_point(
    workspace: Project, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    given = _given_run(workspace, monkeypatch, "FINISHED", {})
    client = open_store(workspace.root).client
    before = client.get_run(given).to_dictionary()
    monkeypatch.setattr("headstart.mlproject._dvc", lambda *_: pytest.fail("a stage ran"))
    with pytest.raises(TrackingError, match=rf"MLFLOW_RUN_ID .*{given} is FINISHED.*unset"):
        mlproject.run_entry_point(point, [])
    assert client.get_run(given).to_dictionary() == before


def test_a_training_begun_again_after_an_error_resumes_its_run(
    workspace: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="no"), _open(workspace) as run:
        raise ValueError("no")
    assert not workspace.run.exists()
    monkeypatch.setenv("MLFLOW_RUN_ID", run.run_id)
    with _open(workspace) as again:
        assert again.run_id == run.run_id
    store = open_store(workspace.root)
    assert store.client.get_run(run.run_id).info.status == "FINISHED"


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
@pytest.mark.parametrize("params", [{"train.epochs": "9", "seed": "1"}, {"seed": "1"}, {}])
def test_a_run_of_another_training_is_not_written_to(
    workspace: Project, monkeypatch: pytest.MonkeyPatch, status: str, params: dict[str, str]
) -> None:
    given = _given_run(workspace, monkeypatch, status, params)
    client = open_store(workspace.root).client
    before = client.get_run(given).to_dictionary()
    with (
        pytest.raises(TrackingError, match=rf"MLFLOW_RUN_ID .*{given} is {status}.*unset"),
        _open(workspace),
    ):
        pytest.fail("the training has begun")
    assert client.get_run(given).to_dictionary() == before


@pytest.mark.parametrize("given", ["0" * 32, "no/id", "deleted"])
def test_a_run_id_of_no_active_run_is_named(
    workspace: Project, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    if given == "deleted":
        given = _given_run(workspace, monkeypatch, "FINISHED", {})
        open_store(workspace.root).client.delete_run(given)
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    with (
        pytest.raises(TrackingError, match=rf"MLFLOW_RUN_ID must name .*{given}.*unset "),
        _open(workspace),
    ):
        pytest.fail("the training has begun")
