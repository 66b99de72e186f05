"""Stage train on a small workspace, with real features, images and models."""

import csv
from pathlib import Path

from headstart import files
from headstart.models.model_file import read_metadata
from headstart.paths import Project
from tests.models.conftest import CLASSES, make_workspace
from tests.stages.conftest import run_evaluate, run_train


def test_the_model_knows_its_classes_and_where_it_comes_from(trained: Project) -> None:
    metadata = read_metadata(trained.model)
    assert metadata["classes"] == list(CLASSES)
    assert metadata["image"] == {"size": 16, "resampling": "bilinear", "fit": "stretch"}
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
