"""Stages train and evaluate on a small workspace, with real features, images and models."""

import csv
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from headstart import files
from headstart.errors import TrainingError
from headstart.models.model_file import read_metadata, save_model
from headstart.models.predictions import read_predictions
from headstart.params import EvaluateParams, TrainParams
from headstart.paths import Project
from headstart.stages import evaluate, train
from tests.models.conftest import CLASSES, IMAGE, make_workspace


def _train(project: Project, **fields: object) -> str:
    params = train.Sections(seed=0, image=IMAGE, train=TrainParams.model_validate(fields))
    return train.run(project, params)


def _evaluate(project: Project) -> str:
    params = evaluate.Sections(seed=0, evaluate=EvaluateParams(n_bootstrap=200))
    return evaluate.run(project, params)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A workspace after train and evaluate."""
    project = make_workspace(tmp_path_factory.mktemp("workspace"))
    assert "validation accuracy" in _train(project)
    assert "test accuracy" in _evaluate(project)
    return project


def test_the_model_knows_its_classes_and_where_it_comes_from(trained: Project) -> None:
    metadata = read_metadata(trained.model)
    assert metadata["classes"] == list(CLASSES)
    assert metadata["image"] == {"size": 16, "resampling": "bilinear", "fit": "stretch"}
    assert metadata["fingerprint"] == "f" * 64
    assert metadata["trained_on"]["n_images"] == 120
    assert metadata["trained_on"]["splits"] == ["train"]


def test_metrics_are_flat_and_agree_with_predictions(trained: Project) -> None:
    metrics = files.read_json(trained.metrics)
    assert list(metrics) == [
        "accuracy",
        "accuracy_ci95_low",
        "accuracy_ci95_high",
        "balanced_accuracy",
        "macro_f1",
        "top_3_accuracy",
        "log_loss",
        "brier",
        "ece",
        "n_test",
        "run_id",
    ]
    test = read_predictions(trained.predictions, "test")
    assert metrics["n_test"] == len(test) == 60
    assert metrics["accuracy"] == (test.predicted_ids == test.label_ids).mean()
    assert metrics["accuracy_ci95_low"] < metrics["accuracy"] < metrics["accuracy_ci95_high"]
    assert 0.6 < metrics["accuracy"] < 1
    assert metrics["run_id"] == files.read_json(trained.run)["run_id"]


def test_predictions_are_those_of_plain_keras_on_the_files(trained: Project) -> None:
    model = keras.models.load_model(trained.model, compile=False)
    for split in ("validation", "test"):
        predictions = read_predictions(trained.predictions, split)
        pixels = np.stack(
            [np.asarray(Image.open(trained.fetched / path)) for path in predictions.paths]
        )
        assert np.abs(np.asarray(model(pixels)) - predictions.probabilities).max() < 1e-5


def test_predictions_list_every_image_once(trained: Project) -> None:
    with trained.predictions.open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["split"] for row in rows] == ["validation"] * 60 + ["test"] * 60
    assert len({row["sha256"] for row in rows}) == 120
    assert list(rows[0])[-4:] == [f"p({name})" for name in CLASSES]
    for row in rows[:5]:
        assert sum(float(row[f"p({name})"]) for name in CLASSES) == pytest.approx(1, abs=1e-6)


def test_the_curve_has_a_row_an_epoch(trained: Project) -> None:
    with (trained.training_report / "curve.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    summary = files.read_json(trained.training_report / "summary.json")
    assert [int(row["epoch"]) for row in rows] == list(range(1, len(rows) + 1))
    assert {"epoch", "log_loss", "accuracy"} <= set(rows[0])
    assert summary["n_epochs"] <= len(rows)


def test_same_bytes_again(trained: Project, tmp_path: Path) -> None:
    again = make_workspace(tmp_path)
    _train(again)
    _evaluate(again)
    page = trained.evaluation_report / "index.html"
    for path in (trained.model, trained.predictions, page, trained.plots / "roc.csv"):
        other = again.root / path.relative_to(trained.root)
        assert path.read_bytes() == other.read_bytes(), path.name


def test_a_model_of_other_features_is_refused(trained: Project, tmp_path: Path) -> None:
    project = make_workspace(tmp_path)
    model = keras.models.load_model(trained.model, compile=False)
    metadata = read_metadata(trained.model)
    save_model(project.model, model, {**metadata, "fingerprint": "e" * 64})
    files.write_json(project.run, {"run_id": "0123"})
    with pytest.raises(TrainingError, match="run `dvc repro train`"):
        _evaluate(project)


def test_images_that_are_not_those_of_the_features_stop_evaluation(tmp_path: Path) -> None:
    project = make_workspace(tmp_path)
    _train(project)
    for path in (project.fetched / "red").iterdir():
        Image.new("RGB", (16, 16), "blue").save(path)
    with pytest.raises(TrainingError, match=r"must agree to 0\.0001, but on \d+\.png they differ"):
        _evaluate(project)
