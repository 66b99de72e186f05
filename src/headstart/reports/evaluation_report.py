"""reports/evaluation/ and reports/plots/: how good the model is, and where it fails.

One self-contained index.html beside its charts as SVG files, and tables for DVC's plots. Knows an
evaluation, not where it comes from.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from headstart.common import files
from headstart.common.errors import TrainingError
from headstart.dataset.manifest import Manifest
from headstart.evaluation.curves import (
    ClassCurve,
    coverage,
    precision_recall_curves,
    reliability,
    roc_curves,
)
from headstart.evaluation.error_analysis import (
    confused_pairs,
    likely_label_errors,
    principal_plane,
    sliced,
    worst_errors,
)
from headstart.evaluation.evaluate_model import Evaluation
from headstart.evaluation.explain import GradCam, overlay
from headstart.features.feature_store import FeatureStore
from headstart.heads.metrics import ece, log_loss
from headstart.images.decode import decode_input, decode_preview
from headstart.models.model_file import LoadedModel
from headstart.models.predictions import Predictions
from headstart.reports.charts import Axis, Chart, Series, bars_file, matrix_file, shortened
from headstart.reports.html import THUMBNAIL_PX, render_page, thumbnail_uri

_MOST_CURVES = 10
_MOST_ERRORS = 24
_MOST_PAIRS = 5
_IMAGES_A_SIDE = 3
_MOST_LABEL_ERRORS = 12
_MOST_LISTED_PAIRS = 20
# A table of more has a hundred thousand cells and more.
_MOST_MATRIX_CLASSES = 200
_MOST_MAP_POINTS = 600
# Of a caption below a picture.
_LINE_PX = 16
_COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)
_NAMES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "top_3_accuracy": "Top-3 accuracy",
    "log_loss": "Log loss",
    "brier": "Brier score",
    "ece": "Expected calibration error",
}


@dataclass(frozen=True)
class Subject:
    """What the page is about: an evaluated model, and the data it was evaluated on.

    Attributes:
        validation: predictions of images the model was not trained on; only searched for label
            errors.
        fetched: the folder that image paths are relative to.
        summary: reports/train/summary.json.
    """

    evaluation: Evaluation
    validation: Predictions
    loaded: LoadedModel
    store: FeatureStore
    manifest: Manifest
    fetched: Path
    summary: dict[str, Any]
    n_bootstrap: int
    seed: int


def write_evaluation_report(folder: Path, subject: Subject) -> None:
    """Write index.html, and the SVG files, which `dvc plots` and MLflow show."""
    evaluation = subject.evaluation
    test, classes = evaluation.test, evaluation.test.classes
    hardest_first = np.argsort(evaluation.f1, kind="stable")
    charts, style = _charts(evaluation), render_page("charts.css.jinja")
    for name, chart in charts.items():
        files.write_text(folder / f"{name}.svg", chart.file(style))
    bars = bars_file(
        "Precision and recall of each class, the hardest first",
        [classes[i] for i in hardest_first],
        [(name, getattr(evaluation, name)[hardest_first]) for name in ("precision", "recall")],
        style,
    )
    files.write_text(folder / "per_class.svg", bars)
    counts = evaluation.confusion
    files.write_text(folder / "confusion.svg", matrix_file(classes, counts, style))

    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    answered = coverage(test.label_ids, test.probabilities)
    rows = [(share, round(share * len(test)) - 1) for share in _COVERAGES]
    page = {
        "evaluation": evaluation,
        "classes": classes,
        "metrics": [
            {
                "key": key,
                "name": _NAMES[key],
                "value": value,
                "interval": evaluation.intervals[key],
                "percent": key not in ("log_loss", "brier"),
            }
            for key, value in evaluation.scores.items()
        ],
        "n_errors": int((test.predicted_ids != test.label_ids).sum()),
        "matrix": [
            {
                "name": name,
                "cells": [
                    {
                        "count": int(counts[row, column]),
                        "share": float(shares[row, column]),
                        "right": row == column,
                        "predicted": predicted,
                    }
                    for column, predicted in enumerate(classes)
                ],
            }
            for row, name in enumerate(classes if len(classes) <= _MOST_MATRIX_CLASSES else ())
        ],
        "per_class": [
            {"name": classes[i], "support": int(evaluation.support[i])}
            | {key: float(getattr(evaluation, key)[i]) for key in ("precision", "recall", "f1")}
            for i in hardest_first
        ],
        "charts": {name: chart.svg() for name, chart in charts.items()},
        "most_curves": _MOST_CURVES,
        "novel": subject.evaluation.novel,
        "coverage": [
            {
                "coverage": share,
                "accuracy": float(answered.accuracy[row]),
                "threshold": float(answered.threshold[row]),
            }
            for share, row in rows
            if row >= 0
        ],
        "calibration": {
            "ece_before": float(ece(test.label_ids, evaluation.unscaled)),
            "ece_after": evaluation.scores["ece"],
            "log_loss_before": float(log_loss(test.label_ids, evaluation.unscaled)),
            "log_loss_after": evaluation.scores["log_loss"],
        },
        "map": _map(subject),
        "slices": sliced(
            test, subject.manifest, n_resamples=min(subject.n_bootstrap, 1000), seed=subject.seed
        ),
        "metadata": subject.loaded.metadata,
        "summary": subject.summary,
        **_pictures(subject),
    }
    files.write_text(folder / "index.html", render_page("evaluation.html.jinja", **page))


def write_tables(folder: Path, evaluation: Evaluation) -> None:
    """Write the CSV files that dvc.yaml's plots draw."""
    test, classes = evaluation.test, evaluation.test.classes
    pairs = zip(test.label_ids, test.predicted_ids, strict=True)
    files.write_csv(
        folder / "confusion.csv",
        ["actual", "predicted"],
        ([classes[actual], classes[predicted]] for actual, predicted in pairs),
    )
    roc = roc_curves(test.label_ids, test.probabilities, classes)
    _write_curves(folder / "roc.csv", ("false_positive_rate", "true_positive_rate"), roc)
    pr = precision_recall_curves(test.label_ids, test.probabilities, classes)
    _write_curves(folder / "precision_recall.csv", ("recall", "precision"), pr)
    rows = []
    for name, probabilities in (
        ("before scaling", evaluation.unscaled),
        ("after scaling", test.probabilities),
    ):
        bins = reliability(test.label_ids, probabilities)
        for index in np.flatnonzero(bins.count):
            point = (bins.confidence[index], bins.accuracy[index], bins.count[index])
            rows.append([name, *_rounded(point)])
    header = ["probabilities", "confidence", "accuracy", "n_images"]
    files.write_csv(folder / "reliability.csv", header, rows)
    found = coverage(test.label_ids, test.probabilities)
    kept = np.unique(np.linspace(0, len(test) - 1, 200).astype(np.int64))
    points = zip(found.coverage[kept], found.accuracy[kept], found.threshold[kept], strict=True)
    header = ["coverage", "accuracy", "confidence_threshold"]
    files.write_csv(folder / "coverage.csv", header, (_rounded(point) for point in points))
    columns = (evaluation.precision, evaluation.recall, evaluation.f1, evaluation.support)
    files.write_csv(
        folder / "per_class.csv",
        ["class", "precision", "recall", "f1", "support"],
        ([name, *_rounded(row)] for name, *row in zip(classes, *columns, strict=True)),
    )


def _charts(evaluation: Evaluation) -> dict[str, Chart]:
    """Return charts by the name of their file: calibration, and each class against the rest."""
    test = evaluation.test
    before = reliability(test.label_ids, evaluation.unscaled)
    after = reliability(test.label_ids, test.probabilities)
    answered = coverage(test.label_ids, test.probabilities)
    kept = np.unique(np.linspace(0, len(test) - 1, 300).astype(np.int64))
    least = max(0.0, np.floor(20 * float(answered.accuracy.min()) - 0.01) / 20)
    # The hardest classes: those with the least area under the curve.
    roc, pr = (
        sorted(curves(test.label_ids, test.probabilities, test.classes), key=lambda c: c.area)
        for curves in (roc_curves, precision_recall_curves)
    )
    roc, pr = roc[:_MOST_CURVES], pr[:_MOST_CURVES]
    # The part of the plane where curves differ: a good model's ROC hugs its corner.
    last = max((float(c.x[np.argmax(c.y >= 0.999)]) for c in roc), default=1.0)
    widest = next(limit for limit in (0.05, 0.1, 0.2, 0.5, 1.0) if last <= limit)
    lowest = min((float(c.y.min()) for c in pr), default=0.0)
    cut = []
    for curve in roc:
        inside = curve.x <= widest
        x, y = np.append(curve.x[inside], widest), np.append(curve.y[inside], curve.y[inside][-1])
        cut.append(Series(curve.name, x, y, f"{curve.area:.3f}"))
    return {
        "reliability": Chart(
            Axis("confidence (%)"),
            Axis("accuracy (%)"),
            [
                Series(name, bins.confidence, bins.accuracy, weights=bins.count, dots=True)
                for name, bins in (("before scaling", before), ("after scaling", after))
            ],
            "Reliability diagram",
            diagonal=True,
        ),
        "coverage": Chart(
            Axis("images answered, the surest first (%)"),
            Axis("accuracy on those (%)", (min(least, 0.9), 1.0)),
            [Series("accuracy", answered.coverage[kept], answered.accuracy[kept])],
            "Accuracy by coverage",
        ),
        "roc": Chart(
            Axis("false positive rate (%)", (0.0, widest)),
            Axis("true positive rate (%)"),
            cut,
            "ROC curves, one class against the rest",
        ),
        "precision_recall": Chart(
            Axis("recall (%)"),
            Axis("precision (%)", (np.floor(10 * min(lowest, 0.9)) / 10, 1.0)),
            [Series(c.name, c.x, c.y, f"{c.area:.3f}") for c in pr],
            "Precision by recall, one class against the rest",
        ),
    }


def _map(subject: Subject) -> dict[str, Any]:
    """Return a map of test images: the plane of the training images' principal components."""
    store, test = subject.store, subject.evaluation.test
    rows = np.linspace(0, len(test) - 1, min(len(test), _MOST_MAP_POINTS)).astype(np.int64)
    train = store.indices("train")
    reference = train[:: max(1, len(train) // 2000)]
    points, explained = principal_plane(
        np.ascontiguousarray(store.rows(reference).features[:, 0]),
        np.ascontiguousarray(store.rows(store.indices("test")[rows]).features[:, 0]),
        seed=subject.seed,
    )
    labels, wrong = test.label_ids[rows], test.predicted_ids[rows] != test.label_ids[rows]
    shown = np.unique(labels)
    margin = 0.04 * (points.max(axis=0) - points.min(axis=0)) + 1e-9
    low, high = points.min(axis=0) - margin, points.max(axis=0) + margin
    chart = Chart(
        Axis(f"first component ({100 * explained[0]:.0f} % of variance)", (low[0], high[0]), False),
        Axis(
            f"second component ({100 * explained[1]:.0f} % of variance)", (low[1], high[1]), False
        ),
        [
            Series(
                test.classes[i],
                points[labels == i, 0],
                points[labels == i, 1],
                line=False,
                dots=True,
                rings=np.flatnonzero(wrong[labels == i]).tolist(),
            )
            for i in shown
        ],
        "Map of the test images' features",
        labelled=True,
        size_px=(640, 460),
    )
    return {"chart": chart.svg(), "n_images": len(rows), "explained": explained.sum()}


def error_pictures(subject: Subject, most: int = 12) -> list[bytes]:
    """Return the worst errors on test images as PNG files of one size, each with what was said."""
    test, pictures = subject.evaluation.test, []
    for row in worst_errors(test.label_ids, test.probabilities, most):
        data = (subject.fetched / test.paths[row]).read_bytes()
        pixels = decode_preview(data, THUMBNAIL_PX, max_pixels=subject.manifest.max_pixels)
        picture = ImageOps.pad(Image.fromarray(pixels), (THUMBNAIL_PX, THUMBNAIL_PX), color="white")
        sheet = Image.new("RGB", (THUMBNAIL_PX, THUMBNAIL_PX + 2 * _LINE_PX), "white")
        sheet.paste(picture)
        label, predicted = test.label_ids[row], test.predicted_ids[row]
        said = f"not {test.classes[label]} ({test.probabilities[row, label]:.2f})"
        sure = f"{test.classes[predicted]} {test.probabilities[row, predicted]:.2f}"
        draw = ImageDraw.Draw(sheet)
        for line, text in enumerate((sure, said)):
            draw.text((3, THUMBNAIL_PX + line * _LINE_PX), shortened(text, 26), fill="black")
        buffer = io.BytesIO()
        sheet.save(buffer, "PNG")
        pictures.append(buffer.getvalue())
    return pictures


def _pictures(subject: Subject) -> dict[str, Any]:
    """Return worst errors, confused pairs and label issues with thumbnails; no more is decoded."""
    test = subject.evaluation.test

    max_pixels = subject.manifest.max_pixels

    def decoded(path: str) -> NDArray[np.uint8]:
        data = (subject.fetched / path).read_bytes()
        return decode_preview(data, THUMBNAIL_PX, max_pixels=max_pixels)

    def figure(
        part: Predictions, row: int | np.int64, picture: NDArray[np.uint8]
    ) -> dict[str, Any]:
        label, predicted = part.label_ids[row], part.predicted_ids[row]
        return {
            "path": part.paths[row],
            "uri": thumbnail_uri(picture),
            "true": part.classes[label],
            "predicted": part.classes[predicted],
            "p_true": float(part.probabilities[row, label]),
            "p_predicted": float(part.probabilities[row, predicted]),
        }

    def figures(part: Predictions, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
        return [figure(part, row, decoded(part.paths[row])) for row in rows]

    # The worst errors, each with what spoke for the wrong class.
    wrong = worst_errors(test.label_ids, test.probabilities, _MOST_ERRORS)
    pictures = [decoded(test.paths[row]) for row in wrong]
    heat: list[str | None] = [None] * len(pictures)
    try:
        cam: GradCam | None = GradCam(subject.loaded)
    except TrainingError:
        cam = None
    if cam is not None and pictures:
        image = subject.loaded.image
        files = [subject.fetched / test.paths[row] for row in wrong]
        seen = np.stack([decode_input(f.read_bytes(), image, max_pixels=max_pixels) for f in files])
        maps = cam.heat(seen, test.predicted_ids[wrong])
        heat = [thumbnail_uri(overlay(*each)) for each in zip(seen, maps, strict=True)]

    # Images taken for another class, beside the images of that class that the model is surest of.
    listed: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    for pair in confused_pairs(test.label_ids, test.probabilities, _MOST_LISTED_PAIRS):
        listed.append(
            {
                "true": test.classes[pair.true_id],
                "predicted": test.classes[pair.predicted_id],
                "count": pair.count,
                "support": int(subject.evaluation.support[pair.true_id]),
            }
        )
        if len(pairs) < _MOST_PAIRS:
            class_id = pair.predicted_id
            right = (test.label_ids == class_id) & (test.predicted_ids == class_id)
            rows = np.flatnonzero(right)
            surest = rows[np.argsort(-test.probabilities[rows, class_id], kind="stable")]
            mistaken = figures(test, pair.rows[:_IMAGES_A_SIDE])
            typical = figures(test, surest[:_IMAGES_A_SIDE])
            pairs.append({**listed[-1], "mistaken": mistaken, "typical": typical})

    # Label issues of both splits together, since confident learning compares within a class.
    parts = (subject.validation, test)
    labels = np.concatenate([part.label_ids for part in parts])
    probabilities = np.concatenate([part.probabilities for part in parts])
    suspicious = likely_label_errors(labels, probabilities)
    label_errors = []
    for index in suspicious[:_MOST_LABEL_ERRORS]:
        in_validation = index < len(subject.validation)
        part, row = (parts[0], index) if in_validation else (test, index - len(subject.validation))
        label_errors += [{**each, "split": part.split} for each in figures(part, np.array([row]))]
    return {
        "errors": [
            {**figure(test, row, picture), "heat": hot}
            for row, picture, hot in zip(wrong, pictures, heat, strict=True)
        ],
        "has_heat": cam is not None,
        "pairs": pairs,
        "listed_pairs": listed,
        "label_errors": {
            "figures": label_errors,
            "count": len(suspicious),
            "n_images": len(labels),
        },
    }


def _write_curves(path: Path, names: tuple[str, str], curves: Sequence[ClassCurve]) -> None:
    rows = (
        [curve.name, *_rounded(point)]
        for curve in curves
        for point in zip(curve.x, curve.y, strict=True)
    )
    files.write_csv(path, ["class", *names], rows)


def _rounded(values: Sequence[float]) -> list[str]:
    """Write six digits: enough to draw, and few enough to differ for a reason."""
    return [f"{value:.6g}" for value in values]
