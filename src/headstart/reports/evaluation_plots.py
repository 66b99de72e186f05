"""The evaluation as tables for DVC's plots, and as SVG files for reading anywhere.

Knows an evaluation, not where it comes from.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from headstart.common import files
from headstart.evaluation.curves import (
    ClassCurve,
    coverage,
    precision_recall_curves,
    reliability,
    roc_curves,
)
from headstart.evaluation.evaluate_model import Evaluation
from headstart.reports.charts import Axis, Chart, Series, bars_file, matrix_file
from headstart.reports.html import chart_style

MOST_CURVES = 10


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
    _write_reliability(folder / "reliability.csv", evaluation)
    _write_coverage(folder / "coverage.csv", evaluation)
    columns = (evaluation.precision, evaluation.recall, evaluation.f1, evaluation.support)
    files.write_csv(
        folder / "per_class.csv",
        ["class", "precision", "recall", "f1", "support"],
        ([name, *_rounded(row)] for name, *row in zip(classes, *columns, strict=True)),
    )


def write_pictures(folder: Path, evaluation: Evaluation) -> None:
    """Write the SVG files, which `dvc plots` and MLflow show."""
    style = chart_style()
    for name, chart in charts(evaluation).items():
        files.write_text(folder / f"{name}.svg", chart.file(style))
    classes, order = evaluation.test.classes, np.argsort(evaluation.f1, kind="stable")
    bars = (
        ("precision", evaluation.precision[order]),
        ("recall", evaluation.recall[order]),
    )
    title = "Precision and recall of each class, the hardest first"
    names = [classes[i] for i in order]
    files.write_text(folder / "per_class.svg", bars_file(title, names, bars, style))
    matrix = matrix_file(classes, evaluation.confusion, style)
    files.write_text(folder / "confusion.svg", matrix)


def charts(evaluation: Evaluation) -> dict[str, Chart]:
    """Charts by the name of their file: calibration, and each class against the rest."""
    test = evaluation.test
    before = reliability(test.label_ids, evaluation.unscaled)
    after = reliability(test.label_ids, test.probabilities)
    answered = coverage(test.label_ids, test.probabilities)
    kept = np.unique(np.linspace(0, len(test) - 1, 300).astype(np.int64))
    least = max(0.0, np.floor(20 * float(answered.accuracy.min()) - 0.01) / 20)
    roc = _hardest(roc_curves(test.label_ids, test.probabilities, test.classes))
    pr = _hardest(precision_recall_curves(test.label_ids, test.probabilities, test.classes))
    # The part of the plane where curves differ: a good model's ROC hugs its corner.
    last = max((float(c.x[np.argmax(c.y >= 0.999)]) for c in roc), default=1.0)
    widest = next(limit for limit in (0.05, 0.1, 0.2, 0.5, 1.0) if last <= limit)
    lowest = min((float(c.y.min()) for c in pr), default=0.0)
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
            [_up_to(widest, c) for c in roc],
            "ROC curves, one class against the rest",
        ),
        "precision_recall": Chart(
            Axis("recall (%)"),
            Axis("precision (%)", (np.floor(10 * min(lowest, 0.9)) / 10, 1.0)),
            [Series(c.name, c.x, c.y, f"{c.area:.3f}") for c in pr],
            "Precision by recall, one class against the rest",
        ),
    }


def _hardest(curves: Sequence[ClassCurve]) -> list[ClassCurve]:
    """At most `MOST_CURVES` curves, those with the least area first."""
    return sorted(curves, key=lambda curve: curve.area)[:MOST_CURVES]


def _up_to(limit: float, curve: ClassCurve) -> Series:
    """The part of a rising curve up to `limit`, and on to the edge."""
    inside = curve.x <= limit
    x, y = np.append(curve.x[inside], limit), np.append(curve.y[inside], curve.y[inside][-1])
    return Series(curve.name, x, y, f"{curve.area:.3f}")


def _write_curves(path: Path, names: tuple[str, str], curves: Sequence[ClassCurve]) -> None:
    rows = (
        [curve.name, *_rounded(point)]
        for curve in curves
        for point in zip(curve.x, curve.y, strict=True)
    )
    files.write_csv(path, ["class", *names], rows)


def _write_reliability(path: Path, evaluation: Evaluation) -> None:
    rows = []
    for name, probabilities in (
        ("before scaling", evaluation.unscaled),
        ("after scaling", evaluation.test.probabilities),
    ):
        bins = reliability(evaluation.test.label_ids, probabilities)
        for index in np.flatnonzero(bins.count):
            point = (bins.confidence[index], bins.accuracy[index], bins.count[index])
            rows.append([name, *_rounded(point)])
    files.write_csv(path, ["probabilities", "confidence", "accuracy", "n_images"], rows)


def _write_coverage(path: Path, evaluation: Evaluation) -> None:
    found = coverage(evaluation.test.label_ids, evaluation.test.probabilities)
    kept = np.unique(np.linspace(0, len(found.coverage) - 1, 200).astype(np.int64))
    columns = (found.coverage[kept], found.accuracy[kept], found.threshold[kept])
    rows = (_rounded(row) for row in zip(*columns, strict=True))
    files.write_csv(path, ["coverage", "accuracy", "confidence_threshold"], rows)


def _rounded(values: Sequence[float]) -> list[str]:
    """Six digits: enough to draw, and few enough to differ for a reason."""
    return [f"{value:.6g}" for value in values]
