"""What `headstart summary` says, and that it names only what is there."""

import re
import sys
from typing import Any

import pytest

from headstart.common import files
from headstart.common.paths import Project
from headstart.reports.summary import summarise
from headstart.tracking.registry import CHALLENGER, Registry
from tests.tracking.conftest import new_model_run

METRICS = {
    "accuracy": 0.9,
    "accuracy_ci95_low": 0.85,
    "accuracy_ci95_high": 0.95,
    "n_test": 100,
}


@pytest.fixture
def registered(workspace: Project) -> tuple[Project, Registry]:
    """Two versions; that of the model here is the second, and register made it challenger."""
    folder = workspace.serving
    (folder / "artifacts").mkdir(parents=True)
    (folder / "MLmodel").write_text("flavors: {}\nmodel_uuid: x\n")
    (folder / "artifacts" / "model.h5").write_bytes(b"model")
    for sha256 in ("aa", "bb"):
        with new_model_run(workspace, {}) as run:
            run.log_model(folder)
        registry = Registry(run.store, "headstart")
        registry.add(run.run_id, sha256, "a description", {})
    registry.promote("1", "first")
    registry.set_alias(CHALLENGER, "2")
    files.write_json(workspace.metrics, METRICS)
    recorded = {"model_name": "headstart", "version": "2", "alias": "challenger"}
    files.write_json(workspace.registration, {**recorded, "model_sha256": "bb"})
    files.write_json(workspace.best_head, {"study": "heads-1"})
    workspace.model.write_bytes(b"model")
    studies = workspace.root / ".headstart" / "studies" / "optuna.db"
    studies.parent.mkdir(parents=True)
    studies.write_text("")
    return workspace, registry


def _registered_as(project: Project) -> str:
    found = re.search("^Registered as +(.*)$", summarise(project).as_text(), re.MULTILINE)
    assert found is not None
    return found.group(1)


def test_the_alias_is_that_of_now(registered: tuple[Project, Registry]) -> None:
    project, registry = registered
    assert _registered_as(project) == "headstart version 2, challenger; champion is version 1"
    registry.promote("2", "promoted by hand")
    assert _registered_as(project) == "headstart version 2, champion"
    registry.roll_back()
    assert _registered_as(project) == "headstart version 2, champion is version 1"


def test_a_pulled_clone_names_only_what_is_there(registered: tuple[Project, Registry]) -> None:
    project, _ = registered
    (project.root / "mlflow.db").unlink()
    said = summarise(project).as_text()
    assert "headstart version 2, challenger, when register ran" in said
    assert "models:/" not in said
    assert "mlflow ui" not in said
    assert "mlflow models serve -m models/serving" in said
    assert not (project.root / "mlflow.db").exists()


def test_a_clone_without_its_data_says_how_to_have_it(
    registered: tuple[Project, Registry],
) -> None:
    project, _ = registered
    for path in (project.model, project.best_head, project.root / "mlflow.db"):
        path.unlink()
    (project.serving / "MLmodel").unlink()
    (project.serving / "artifacts" / "model.h5").unlink()
    (project.serving / "artifacts").rmdir()
    project.serving.rmdir()
    said = summarise(project).as_text()
    assert "Model           not here: `dvc pull`" in said
    assert "serve" not in said
    assert "predict" not in said
    assert "optuna-dashboard" not in said


def test_optuna_dashboard_is_installed_before_it_is_started(
    registered: tuple[Project, Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, _ = registered
    command = "  optuna-dashboard sqlite:///.headstart/studies/optuna.db"
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    without: Any = summarise(project).as_text().splitlines()
    assert without[-1] == command
    assert without[-2].startswith("  pip install optuna-dashboard")


def test_a_store_that_does_not_answer_is_named(
    registered: tuple[Project, Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    said = summarise(registered[0]).as_text()
    assert "(the tracking store must answer, but http://127.0.0.1:9 did not" in said
    assert "models:/" not in said
