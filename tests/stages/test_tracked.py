"""Every metric of a trained model's run, of each kind, as MLflow shows it."""

import shutil
from pathlib import Path

import pytest

from headstart.common.paths import Project
from headstart.features.feature_store import FeatureStore
from headstart.heads.config import read_head
from headstart.params.train import TrainParams
from headstart.stages.train import write_training_report
from headstart.tracking.runs import read_record
from headstart.tracking.store import open_store
from headstart.tracking.training import open_training
from headstart.training.final_fit import train_model
from tests.models.conftest import make_workspace
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
    """As stage train logs it, with bytes in the place of the model."""
    project = make_workspace(tmp_path)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    project.model.write_bytes(b"model")
    best = read_head(project.best_head)
    with (
        FeatureStore(project.features) as store,
        open_training(project, best, store.contract, store.fingerprint, 0) as log,
    ):
        trained = train_model(store, best, TrainParams.model_validate(fields), seed=0)
        write_training_report(project, trained, None)
        log.model(project, curve=trained.curve, metrics=trained.scores, reports=[])
    hold_model_to_reports(project)
    run = open_store(project.root).client.get_run(read_record(project.run).run_id)
    note = run.data.tags["mlflow.note.content"]
    assert "A 1×16 relu head on features of small" in note
    assert f"**Validation accuracy {100 * trained.scores['accuracy']:.1f} %**" in note
    assert run.info.run_name == "animal-silhouettes · 1×16 relu"
