"""Stage evaluate on a small workspace, with real features, images, models and a real browser."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import keras
import numpy as np
import pytest
from PIL import Image

from headstart.common import files
from headstart.common.errors import TrainingError
from headstart.common.paths import Project
from headstart.dataset.manifest import read_manifest
from headstart.encoders.catalogue import ENCODERS
from headstart.encoders.weights import RANDOM_IDENTITY
from headstart.evaluation.evaluate_model import evaluate_model
from headstart.features.feature_store import FeatureStore
from headstart.models.model_file import load_model
from headstart.models.predictions import read_predictions
from headstart.reports.evaluation_report import Subject
from headstart.reports.model_card import model_card
from headstart.tracking.store import open_store
from tests.models.conftest import CLASSES


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
        "novelty_auroc",
        "novelty_auroc_worst",
        "novelty_caught",
        "n_test",
        "run_id",
    ]
    test = read_predictions(trained.predictions, "test")
    assert metrics["n_test"] == len(test) == 60
    assert metrics["accuracy"] == (test.predicted_ids == test.label_ids).mean()
    assert metrics["accuracy_ci95_low"] < metrics["accuracy"] < metrics["accuracy_ci95_high"]
    assert 0.6 < metrics["accuracy"] < 1
    assert 0 < metrics["novelty_auroc_worst"] <= metrics["novelty_auroc"] <= 1
    assert 0 <= metrics["novelty_caught"] <= 1
    assert metrics["run_id"] == files.read_json(trained.run)["run_id"]


def test_predictions_are_those_of_plain_keras_on_the_files(trained: Project) -> None:
    model = keras.models.load_model(trained.model, compile=False)
    for split in ("validation", "test"):
        predictions = read_predictions(trained.predictions, split)
        pixels = np.stack(
            [np.asarray(Image.open(trained.fetched / path)) for path in predictions.paths]
        )
        assert np.abs(np.asarray(model(pixels)) - predictions.probabilities).max() < 1e-5


def test_predictions_list_every_image_once_under_its_class(trained: Project) -> None:
    with trained.predictions.open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["split"] for row in rows] == ["validation"] * 60 + ["test"] * 60
    assert len({row["sha256"] for row in rows}) == 120
    assert all(row["path"].startswith(f"{row['label']}/") for row in rows)
    assert list(rows[0])[-5:] == [*(f"p({name})" for name in CLASSES), "novelty"]
    assert all(0 <= float(row["novelty"]) <= 1 for row in rows if row["split"] == "test")
    assert {row["novelty"] for row in rows if row["split"] == "validation"} == {""}
    for row in rows[:5]:
        assert sum(float(row[f"p({name})"]) for name in CLASSES) == pytest.approx(1, abs=1e-6)


def test_the_worst_errors_are_images_of_the_run(trained: Project) -> None:
    store = open_store(trained.root)
    run_id = files.read_json(trained.run)["run_id"]
    test = read_predictions(trained.predictions, "test")
    wrong = np.flatnonzero(test.predicted_ids != test.label_ids)
    worst = wrong[np.argsort(test.probabilities[wrong, test.label_ids[wrong]])]
    names = [file.path for file in store.client.list_artifacts(run_id, "images")]
    assert len([name for name in names if name.endswith(".png")]) == min(len(wrong), 12) > 0
    (first,) = [name for name in names if "+step+0+" in name and name.endswith(".png")]
    with Image.open(store.client.download_artifacts(run_id, first)) as image:
        assert image.size == (160, 192)
        shown = np.asarray(image.convert("RGB"))[40:120, 40:120].mean(axis=(0, 1))
        # The words below it are no part of the picture.
        assert np.asarray(image)[160:].min() < 100
    original = np.asarray(Image.open(trained.fetched / test.paths[worst[0]]).convert("RGB"))
    assert shown == pytest.approx(original.mean(axis=(0, 1)), abs=12)
    sizes = [file.file_size or 0 for file in store.client.list_artifacts(run_id, "images")]
    assert sum(sizes) < 60_000 * min(len(wrong), 12)


def test_a_model_of_other_features_is_refused(trained: Project) -> None:
    loaded = load_model(trained.model)
    other = replace(loaded, metadata={**loaded.metadata, "fingerprint": "e" * 64})
    with (
        FeatureStore(trained.features) as store,
        pytest.raises(TrainingError, match="run `dvc repro train`"),
    ):
        evaluate_model(store, other, trained.fetched, n_bootstrap=100, seed=0)


def test_images_that_are_not_those_of_the_features_stop_evaluation(
    trained: Project, tmp_path: Path
) -> None:
    shutil.copytree(trained.fetched, tmp_path / "fetched")
    for path in (tmp_path / "fetched" / "red").iterdir():
        Image.new("RGB", (16, 16), "blue").save(path)
    with (
        FeatureStore(trained.features) as store,
        pytest.raises(TrainingError, match=r"must agree to 0\.0001, but on \d+\.png they differ"),
    ):
        evaluate_model(
            store, load_model(trained.model), tmp_path / "fetched", n_bootstrap=100, seed=0
        )


def test_pictures_and_tables_are_all_there(trained: Project) -> None:
    names = ("confusion", "roc", "precision_recall", "reliability", "coverage", "per_class")
    for name in names:
        picture = ElementTree.parse(trained.evaluation_report / f"{name}.svg").getroot()
        assert float(picture.attrib["width"]) > 250, name
        with (trained.plots / f"{name}.csv").open() as stream:
            assert len(list(csv.reader(stream))) > 4, name
    with (trained.plots / "confusion.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    right = sum(row["actual"] == row["predicted"] for row in rows) / len(rows)
    assert right == files.read_json(trained.metrics)["accuracy"]


@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_stands_alone_and_fits(
    trained: Project, browser: Any, width: int, scheme: str
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((trained.evaluation_report / "index.html").as_uri())
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in requests if url.startswith("file:")]) == 1
    assert page.evaluate("document.images.length") > 5
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    text = page.inner_text("body")
    for part in ("Accuracy", "Most confused pairs", "Worst errors", "Map of the features"):
        assert part in text
    page.close()


def test_the_model_card_says_what_the_reports_say(trained: Project) -> None:
    card, metrics = trained.model_card.read_text(), files.read_json(trained.metrics)
    low, high = 100 * metrics["accuracy_ci95_low"], 100 * metrics["accuracy_ci95_high"]
    assert (
        f"| test | 60 | {100 * metrics['accuracy']:.1f} % | {low:.1f} to {high:.1f} | "
        f"{metrics['log_loss']:.3f} | {metrics['ece']:.3f} |" in card
    )
    assert f"AUROC of {metrics['novelty_auroc']:.2f}" in card
    validation = files.read_json(trained.training_report / "summary.json")["validation"]
    assert f"| 60 | {100 * validation['accuracy']:.1f} % |" in card
    manifest = read_manifest(trained.manifest)
    for name in CLASSES:
        counts = manifest.table[manifest.table["label"] == name]["split"].value_counts()
        shown = " | ".join(f"{counts[split]}" for split in ("train", "validation", "test"))
        assert f"| {name} | {shown} |" in card
    assert "| source | photos |" in card
    assert f"fingerprint {load_model(trained.model).metadata['fingerprint'][:16]}" in card
    assert "with fewer than 30 test images each" in card
    assert metrics["run_id"] not in card
    # One screen, and it is with the run.
    assert len(card.splitlines()) < 80
    run_id = files.read_json(trained.run)["run_id"]
    artifacts = open_store(trained.root).client.list_artifacts(run_id)
    assert "model_card.md" in [artifact.path for artifact in artifacts]


def test_the_model_card_says_what_is_known_of_weights(trained: Project) -> None:
    loaded = load_model(trained.model)

    def card(recipe: dict[str, Any], source: str = "photos") -> str:
        with FeatureStore(trained.features) as store:
            evaluation = evaluate_model(store, loaded, trained.fetched, n_bootstrap=100, seed=0)
            subject = Subject(
                evaluation=evaluation,
                validation=read_predictions(trained.out_of_fold, "validation"),
                loaded=replace(loaded, metadata={**loaded.metadata, "extractor": recipe}),
                store=store,
                manifest=read_manifest(trained.manifest),
                fetched=trained.fetched,
                summary={},
                n_bootstrap=100,
                seed=0,
            )
            return model_card(subject, source)

    lite = ENCODERS["efficientnet-lite0"].imagenet
    assert lite is not None
    each = [
        {"backbone": "efficientnet-lite0", "weights": lite.identity},
        {"backbone": "dinov2-small", "weights": "d" * 64},
    ]
    two = card({"backbone": "both", "encoders": each}, "https://user:secret@host/a|b.zip")
    assert "efficientnet-lite0, ImageNet weights (579344248a93…; licence: Apache-2.0)" in two
    assert "dinov2-small, a given file of weights (dddddddddddd…; licence: Apache-2.0, if " in two
    assert "secret" not in two
    assert "a\\|b.zip" in two
    assert "vgg16, random weights;" in card({"backbone": "vgg16", "weights": RANDOM_IDENTITY})
    other = card({"backbone": "mine", "weights": "e" * 64})
    assert "mine, a given file of weights (eeeeeeeeeeee…; licence: not known here)" in other
