"""reports/evaluation/: the page that shows how good the model is, and where it fails.

One self-contained index.html beside the same charts as SVG files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.common import files
from headstart.common.errors import TrainingError
from headstart.dataset.manifest import Manifest
from headstart.evaluation.curves import coverage
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
from headstart.images.decode import decode, resize
from headstart.models.model_file import LoadedModel
from headstart.models.predictions import Predictions
from headstart.params.image import ImageParams
from headstart.reports.charts import Axis, Chart, Series
from headstart.reports.evaluation_plots import MOST_CURVES, charts, write_pictures
from headstart.reports.html import render_page, thumbnail_uri

_MOST_ERRORS = 24
_MOST_PAIRS = 5
_IMAGES_A_SIDE = 3
_MOST_LABEL_ERRORS = 12
_MOST_LISTED_PAIRS = 20
# A table of more has a hundred thousand cells and more.
_MOST_MATRIX_CLASSES = 200
_MOST_MAP_POINTS = 600
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


def write_report(folder: Path, subject: Subject) -> None:
    """Write index.html and the SVG files."""
    write_pictures(folder, subject.evaluation)
    files.write_text(folder / "index.html", render_page("evaluation.html.jinja", **_page(subject)))


def _page(subject: Subject) -> dict[str, Any]:
    evaluation = subject.evaluation
    pictures = _Pictures(subject)
    return {
        "evaluation": evaluation,
        "classes": evaluation.test.classes,
        "metrics": _metrics(evaluation),
        "n_errors": int((evaluation.test.predicted_ids != evaluation.test.label_ids).sum()),
        "matrix": _matrix(evaluation),
        "per_class": _per_class(evaluation),
        "charts": {name: chart.svg() for name, chart in charts(evaluation).items()},
        "most_curves": MOST_CURVES,
        "coverage": _coverage_table(evaluation),
        "calibration": {
            "ece_before": float(ece(evaluation.test.label_ids, evaluation.unscaled)),
            "ece_after": evaluation.scores["ece"],
            "log_loss_before": float(log_loss(evaluation.test.label_ids, evaluation.unscaled)),
            "log_loss_after": evaluation.scores["log_loss"],
        },
        "errors": pictures.errors(),
        "has_heat": pictures.cam is not None,
        "pairs": pictures.pairs(),
        "listed_pairs": _listed_pairs(evaluation),
        "label_errors": pictures.label_errors(),
        "map": _map(subject),
        "slices": sliced(
            evaluation.test,
            subject.manifest,
            n_resamples=min(subject.n_bootstrap, 1000),
            seed=subject.seed,
        ),
        "metadata": subject.loaded.metadata,
        "summary": subject.summary,
    }


def _metrics(evaluation: Evaluation) -> list[dict[str, Any]]:
    return [
        {
            "key": key,
            "name": _NAMES[key],
            "value": value,
            "interval": evaluation.intervals[key],
            "percent": key not in ("log_loss", "brier"),
        }
        for key, value in evaluation.scores.items()
    ]


def _matrix(evaluation: Evaluation) -> list[dict[str, Any]] | None:
    """Rows of the confusion matrix; None where there are too many classes for a table."""
    counts, classes = evaluation.confusion, evaluation.test.classes
    if len(classes) > _MOST_MATRIX_CLASSES:
        return None
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return [
        {
            "name": name,
            "cells": [
                {
                    "count": int(counts[row, column]),
                    "share": float(shares[row, column]),
                    "right": row == column,
                    "predicted": classes[column],
                }
                for column in range(len(classes))
            ],
        }
        for row, name in enumerate(classes)
    ]


def _listed_pairs(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The most confused pairs, more of them than there are pictures of."""
    test = evaluation.test
    return [
        {
            "true": test.classes[pair.true_id],
            "predicted": test.classes[pair.predicted_id],
            "count": pair.count,
            "support": int(evaluation.support[pair.true_id]),
        }
        for pair in confused_pairs(test.label_ids, test.probabilities, _MOST_LISTED_PAIRS)
    ]


def _per_class(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Every class, the hardest first."""
    return [
        {
            "name": evaluation.test.classes[i],
            "precision": float(evaluation.precision[i]),
            "recall": float(evaluation.recall[i]),
            "f1": float(evaluation.f1[i]),
            "support": int(evaluation.support[i]),
        }
        for i in np.argsort(evaluation.f1, kind="stable")
    ]


def _coverage_table(evaluation: Evaluation) -> list[dict[str, float]]:
    found = coverage(evaluation.test.label_ids, evaluation.test.probabilities)
    rows = [round(share * len(found.coverage)) - 1 for share in _COVERAGES]
    return [
        {
            "coverage": share,
            "accuracy": float(found.accuracy[row]),
            "threshold": float(found.threshold[row]),
        }
        for share, row in zip(_COVERAGES, rows, strict=True)
        if row >= 0
    ]


def _map(subject: Subject) -> dict[str, Any]:
    """Test images in the plane of the training images' principal components."""
    store, test = subject.store, subject.evaluation.test
    rows = np.linspace(0, len(test) - 1, min(len(test), _MOST_MAP_POINTS)).astype(np.int64)
    train = store.indices("train")
    reference = train[:: max(1, len(train) // 2000)]
    places, explained = principal_plane(
        np.ascontiguousarray(store.features[reference, 0]),
        np.ascontiguousarray(store.features[store.indices("test")[rows], 0]),
        seed=subject.seed,
    )
    labels, wrong = test.label_ids[rows], test.predicted_ids[rows] != test.label_ids[rows]
    shown = np.unique(labels)
    margin = 0.04 * (places.max(axis=0) - places.min(axis=0)) + 1e-9
    low, high = places.min(axis=0) - margin, places.max(axis=0) + margin
    chart = Chart(
        Axis(f"first component ({100 * explained[0]:.0f} % of variance)", (low[0], high[0]), False),
        Axis(
            f"second component ({100 * explained[1]:.0f} % of variance)", (low[1], high[1]), False
        ),
        [
            Series(
                test.classes[i],
                places[labels == i, 0],
                places[labels == i, 1],
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


class _Pictures:
    """Thumbnails for the page; only what is shown is ever decoded."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._image = ImageParams.model_validate(subject.loaded.metadata["image"])
        try:
            self.cam: GradCam | None = GradCam(subject.loaded.model)
        except TrainingError:
            self.cam = None

    def errors(self) -> list[dict[str, Any]]:
        """The worst errors, each with what spoke for the wrong class."""
        test = self._subject.evaluation.test
        rows = worst_errors(test.label_ids, test.probabilities, _MOST_ERRORS)
        pictures = [self._pixels(test.paths[row]) for row in rows]
        heat = self._heat(pictures, test.predicted_ids[rows])
        return [
            {**self._figure(test, row, picture), "heat": hot}
            for row, picture, hot in zip(rows, pictures, heat, strict=True)
        ]

    def pairs(self) -> list[dict[str, Any]]:
        """Images taken for another class, beside images of that class."""
        test = self._subject.evaluation.test
        found = confused_pairs(test.label_ids, test.probabilities, _MOST_PAIRS)
        return [
            {
                "true": test.classes[pair.true_id],
                "predicted": test.classes[pair.predicted_id],
                "count": pair.count,
                "support": int(self._subject.evaluation.support[pair.true_id]),
                "mistaken": self._figures(test, pair.rows[:_IMAGES_A_SIDE]),
                "typical": self._figures(test, _typical(test, pair.predicted_id)),
            }
            for pair in found
        ]

    def label_errors(self) -> dict[str, Any]:
        """Images whose label is likely wrong, of the validation and the test split."""
        parts = (self._subject.validation, self._subject.evaluation.test)
        figures, count = [], 0
        labels = np.concatenate([part.label_ids for part in parts])
        probabilities = np.concatenate([part.probabilities for part in parts])
        places = [(part, row) for part in parts for row in range(len(part))]
        rows = likely_label_errors(labels, probabilities)
        count = len(rows)
        for part, row in (places[row] for row in rows[:_MOST_LABEL_ERRORS]):
            figure = self._figure(part, row, self._pixels(part.paths[row]))
            figures.append({**figure, "split": part.split})
        return {"figures": figures, "count": count, "n_images": len(labels)}

    def _heat(
        self, pictures: Sequence[NDArray[np.uint8]], class_ids: NDArray[np.int64]
    ) -> list[str | None]:
        if self.cam is None or not pictures:
            return [None] * len(pictures)
        resized = np.stack([resize(picture, self._image) for picture in pictures])
        heat = self.cam.heat(resized, class_ids)
        return [
            thumbnail_uri(overlay(pixels, one)) for pixels, one in zip(resized, heat, strict=True)
        ]

    def _figures(self, part: Predictions, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
        return [self._figure(part, row, self._pixels(part.paths[row])) for row in rows]

    def _figure(
        self, part: Predictions, row: int | np.int64, picture: NDArray[np.uint8]
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

    def _pixels(self, path: str) -> NDArray[np.uint8]:
        data = (self._subject.fetched / path).read_bytes()
        return decode(data, max_pixels=self._subject.manifest.max_pixels)


def _typical(test: Predictions, class_id: int) -> NDArray[np.int64]:
    """Images of a class that the model is surest of and right about."""
    right = (test.label_ids == class_id) & (test.predicted_ids == class_id)
    rows = np.flatnonzero(right)
    order = np.argsort(-test.probabilities[rows, class_id], kind="stable")
    return rows[order][:_IMAGES_A_SIDE].astype(np.int64)
