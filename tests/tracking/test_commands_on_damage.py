"""Tracking commands on damaged state: one sentence each, whatever is broken."""

import shutil
import sqlite3
import sys
from collections.abc import Callable

import pytest

from headstart import cli
from headstart.common import files
from headstart.common.paths import Project
from headstart.tracking.registry import Registry
from tests.tracking.conftest import new_model_run, record_run

COMMANDS = {
    "promote": ["promote", "1"],
    "rollback": ["rollback"],
    "doctor": ["doctor"],
    "summary": ["summary"],
    "sync": ["sync"],
    "compare": ["compare", "RUN", "RUN"],
    "reproduce": ["reproduce", "RUN"],
}


def _execute(project: Project, statement: str) -> None:
    with sqlite3.connect(project.root / "mlflow.db") as database:
        database.execute(statement)


def _no_database(project: Project) -> None:
    (project.root / "mlflow.db").write_bytes(b"this is not SQLite\n" * 1000)


def _database_is_a_folder(project: Project) -> None:
    (project.root / "mlflow.db").unlink()
    (project.root / "mlflow.db").mkdir()


def _cut_database(project: Project) -> None:
    path = project.root / "mlflow.db"
    path.write_bytes(path.read_bytes()[:20000])


def _database_of_another_mlflow(project: Project) -> None:
    _execute(project, "UPDATE alembic_version SET version_num = 'ffffffffffff'")


def _a_table_is_gone(project: Project) -> None:
    _execute(project, "DROP TABLE model_versions")


def _history_is_no_json(project: Project) -> None:
    _execute(project, "UPDATE registered_model_tags SET value = '{[' WHERE key LIKE 'champion%'")


def _history_is_of_another_form(project: Project) -> None:
    _execute(project, "UPDATE registered_model_tags SET value = '[1]' WHERE key LIKE 'champion%'")


def _run_is_gone(project: Project) -> None:
    _execute(project, "DELETE FROM tags")
    _execute(project, "DELETE FROM runs")


def _artifacts_are_gone(project: Project) -> None:
    shutil.rmtree(project.root / "mlruns")


def _record_is_no_json(project: Project) -> None:
    project.run.write_text("{")


def _record_is_of_another_form(project: Project) -> None:
    project.run.write_text("[1]")


def _reports_are_no_json(project: Project) -> None:
    project.metrics.write_text("")
    project.registration.write_text("nothing")


def _reports_are_of_another_form(project: Project) -> None:
    project.metrics.write_text('{"accuracy": "high"}')
    project.registration.write_text("{}")
    project.best_head.write_text("[]")


DAMAGE: list[Callable[[Project], None]] = [
    _no_database, _database_is_a_folder, _cut_database, _database_of_another_mlflow,
    _a_table_is_gone, _history_is_no_json, _history_is_of_another_form, _run_is_gone,
    _artifacts_are_gone, _record_is_no_json, _record_is_of_another_form, _reports_are_no_json,
    _reports_are_of_another_form,
]  # fmt: skip


@pytest.fixture
def sound(workspace: Project, monkeypatch: pytest.MonkeyPatch) -> tuple[Project, str]:
    """A workspace with a registered champion and its reports; and the run's id."""
    monkeypatch.setenv("HEADSTART_DEBUG", "0")
    folder = workspace.serving
    (folder / "artifacts").mkdir(parents=True)
    (folder / "MLmodel").write_text("flavors: {}\nmodel_uuid: x\n")
    (folder / "artifacts" / "model.h5").write_bytes(b"model")
    with new_model_run(workspace, {"headstart.kind": "model"}) as run:
        run.log_model(folder)
        run.log_artifact(folder / "artifacts" / "model.h5")
    registry = Registry(run.store, "headstart")
    registry.add(run.run_id, "aa", "a description", {})
    registry.promote("1", "first")
    record_run(workspace, run.run_id)
    interval = {"accuracy_ci95_low": 0.8, "accuracy_ci95_high": 1.0}
    metrics = {"accuracy": 0.9, **interval, "n_test": 10, "run_id": run.run_id}
    files.write_json(workspace.metrics, metrics)
    recorded = {"model_name": "headstart", "version": "1", "alias": "champion"}
    files.write_json(workspace.registration, {**recorded, "model_sha256": "aa"})
    files.write_json(workspace.best_head, {"study": "heads-1"})
    return workspace, run.run_id


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__.strip("_"))
def test_what_is_damaged_is_said_in_one_sentence(
    sound: tuple[Project, str],
    damage: Callable[[Project], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    project, run_id = sound
    damage(project)
    tracebacks = {}
    for name, words in COMMANDS.items():
        arguments = [run_id if word == "RUN" else word for word in words]
        monkeypatch.setattr(sys, "argv", ["headstart", *arguments])
        capsys.readouterr()
        try:
            cli.main()
        except SystemExit as ended:
            said = capsys.readouterr()
            if ended.code:
                assert said.err.startswith("headstart: ") or "WRONG" in said.out, (name, said)
        except Exception as error:
            tracebacks[name] = repr(error)[:300]
    assert tracebacks == {}


@pytest.mark.usefixtures("sound")
def test_a_version_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for version in ("", "0", "-1", "abc", "1; DROP TABLE runs", "9" * 40, "1.0", "é", "@champion"):
        monkeypatch.setattr(sys, "argv", ["headstart", "promote", "--", version])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 1, version
        said = capsys.readouterr().err
        assert "must exist, but got" in said or "a run must be named by its id" in said, version
