"""Stage train on a small workspace, with real features, images and models."""

import csv
from pathlib import Path

import numpy as np
import pytest

from headstart.common import files
from headstart.common.paths import Project
from headstart.models.model_file import load_model, read_metadata
from headstart.models.predictions import read_predictions
from headstart.training.fine_tune import Trainer
from tests.models.conftest import CLASSES, IMAGE, compute_outputs, make_workspace, pack_pixels
from tests.stages.conftest import run_evaluate, run_train
from tests.stages.tracked import hold_model_to_reports


def test_the_model_knows_its_classes_and_where_it_comes_from(trained: Project) -> None:
    metadata = read_metadata(trained.model)
    assert metadata["classes"] == list(CLASSES)
    assert metadata["image"] == {"size": 16, "resampling": "bicubic", "fit": "stretch"}
    assert metadata["fingerprint"] == "f" * 64
    assert metadata["trained_on"]["n_images"] == 120
    assert metadata["trained_on"]["splits"] == ["train"]


def test_the_curve_has_a_row_an_epoch(trained: Project) -> None:
    with (trained.training_report / "curve.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    summary = files.read_json(trained.training_report / "summary.json")
    assert [int(row["epoch"]) for row in rows] == list(range(1, len(rows) + 1))
    assert {"epoch", "log_loss", "accuracy"} <= set(rows[0])
    assert summary["n_epochs"] <= len(rows)


def test_same_bytes_again(trained: Project, tmp_path: Path) -> None:
    again = make_workspace(tmp_path)
    run_train(again)
    run_evaluate(again)
    page = trained.evaluation_report / "index.html"
    for path in (trained.model, trained.predictions, page, trained.plots / "roc.csv"):
        other = again.root / path.relative_to(trained.root)
        assert path.read_bytes() == other.read_bytes(), path.name


def test_a_fine_tuned_model_goes_all_the_way_to_its_page(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_workspace(tmp_path)
    pack_pixels(project)
    options = {"enabled": True, "blocks": 2, "epochs": 5, "learning_rate": 1e-2}
    assert run_train(project, fine_tune=options).endswith("fine-tuning kept")
    run_evaluate(project)
    hold_model_to_reports(project)
    summary = files.read_json(project.training_report / "summary.json")
    assert read_metadata(project.model)["fine_tuned"] == summary["fine_tuning"]
    assert len((project.training_report / "fine_tune.csv").read_text().splitlines()) > 2
    page = (project.evaluation_report / "index.html").read_text()
    assert "The encoder was fine-tuned from" in page
    test = read_predictions(project.predictions, "test")
    direct = compute_outputs(
        load_model(project.model).model, [project.fetched / path for path in test.paths], IMAGE
    )
    assert np.abs(direct - test.probabilities).max() < 1e-5
    assert len(list((own_cache / "fine_tuned").iterdir())) == 1
    # Run again, the stage takes the result of the same fine-tuning from the cache.
    before = {path: path.read_bytes() for path in (project.model, project.out_of_fold)}
    monkeypatch.setattr(Trainer, "run_epoch", None)
    assert run_train(project, fine_tune=options).endswith("fine-tuning kept")
    assert {path: path.read_bytes() for path in before} == before


def test_fine_tuning_goes_on_without_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "workspace").mkdir()
    project = make_workspace(tmp_path / "workspace")
    pack_pixels(project)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "file"))
    options = {"enabled": True, "blocks": 1, "epochs": 1}
    assert "fine-tuning" in run_train(project, fine_tune=options)
    assert list((project.root / ".headstart").rglob("last.npz"))
