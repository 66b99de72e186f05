"""Every metric of a trained model's run, of each kind, as MLflow shows it."""

import shutil
from pathlib import Path

import pytest

from headstart.common import files
from headstart.common.paths import Project
from headstart.tracking.runs import read_run_id
from headstart.tracking.store import open_store
from tests.models.conftest import make_workspace
from tests.stages.conftest import run_train
from tests.stages.tracked import hold_model_to_reports


def test_an_ensembles_run_shows_what_the_reports_say(trained: Project) -> None:
    hold_model_to_reports(trained)


@pytest.mark.parametrize(
    "fields",
    [{"seeds": 1}, {"splits": "train+validation", "seeds": 1, "folds": 2}],
    ids=["one head", "out of fold"],
)
def test_a_run_of_each_kind_shows_what_the_reports_say(
    tmp_path: Path, empty_database: Path, fields: dict[str, object]
) -> None:
    project = make_workspace(tmp_path)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    run_train(project, **fields)
    scores = files.read_json(project.training_report / "summary.json")["validation"]
    hold_model_to_reports(project)
    run = open_store(project.root).client.get_run(read_run_id(project.run))
    note = run.data.tags["mlflow.note.content"]
    assert "Head: 1×16 relu; on features of small" in note
    assert f"**Validation accuracy {100 * scores['accuracy']:.1f} %**" in note
    assert run.info.run_name == "animal-silhouettes · 1×16 relu"
