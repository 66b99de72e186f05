"""The evaluation as tables for DVC's plots, and as pictures for reading anywhere.

Knows an evaluation, not where it comes from.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from headstart import files
from headstart.models.curves import (
    Curve,
    coverage,
    precision_recall_curves,
    reliability,
    roc_curves,
)
from headstart.models.evaluation import Evaluation
from headstart.reports.plots import new_figure, save_png

MOST_CURVES = 10
_MOST_LABELS = 40


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
    """Write the PNG files."""
    test = evaluation.test
    roc = roc_curves(test.label_ids, test.probabilities, test.classes)
    pr = precision_recall_curves(test.label_ids, test.probabilities, test.classes)
    pictures = {
        "confusion": confusion_figure(evaluation),
        "roc": _curves_figure(
            roc, "ROC, one class against the rest", "false positive rate", "true positive rate"
        ),
        "precision_recall": _curves_figure(pr, "Precision by recall", "recall", "precision"),
        "reliability": _reliability_figure(evaluation),
        "coverage": _coverage_figure(evaluation),
        "per_class": _per_class_figure(evaluation),
    }
    for name, figure in pictures.items():
        save_png(figure, folder / f"{name}.png")


def hardest(curves: Sequence[Curve]) -> list[Curve]:
    """At most `MOST_CURVES` curves, those with the least area first."""
    return sorted(curves, key=lambda curve: curve.area)[:MOST_CURVES]


def confusion_figure(evaluation: Evaluation) -> Figure:
    """The confusion matrix as a picture; with its counts where they can be read."""
    counts, classes = evaluation.confusion, evaluation.test.classes
    side = float(np.clip(0.5 * len(classes) + 2.2, 4.2, 14))
    figure, axes = new_figure(side + 0.8, side)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.grid(visible=False)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title="Confusion matrix (test images)")
    if len(classes) <= _MOST_LABELS:
        ticks = range(len(classes))
        axes.set_xticks(ticks, classes, rotation=45, ha="right")
        axes.set_yticks(ticks, classes)
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "#222222"
            text = str(counts[row, column])
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
    return figure


def _curves_figure(curves: Sequence[Curve], title: str, x: str, y: str) -> Figure:
    figure, axes = new_figure()
    for index, curve in enumerate(hardest(curves)):
        style = "-" if index < 8 else "--"
        axes.plot(curve.x, curve.y, style, label=f"{curve.name} ({curve.area:.3f})")
    axes.set(xlabel=x, ylabel=y, title=title, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.legend(fontsize=8, loc="lower left" if x == "recall" else "lower right")
    return figure


def _reliability_figure(evaluation: Evaluation) -> Figure:
    figure, axes = new_figure(5.2, 4.4)
    axes.plot([0, 1], [0, 1], linestyle=":", color="#666666", label="perfect")
    for name, probabilities in (
        ("before scaling", evaluation.unscaled),
        ("after scaling", evaluation.test.probabilities),
    ):
        bins = reliability(evaluation.test.label_ids, probabilities)
        known = bins.count > 0
        axes.plot(bins.confidence[known], bins.accuracy[known], marker="o", label=name)
    axes.set(
        xlabel="confidence", ylabel="accuracy", title="Reliability", xlim=(0, 1.02), ylim=(0, 1.02)
    )
    axes.legend(loc="upper left")
    return figure


def _coverage_figure(evaluation: Evaluation) -> Figure:
    found = coverage(evaluation.test.label_ids, evaluation.test.probabilities)
    figure, axes = new_figure()
    axes.plot(100 * found.coverage, 100 * found.accuracy)
    low = 100 * float(found.accuracy.min())
    axes.set(
        xlabel="images answered, the surest first (%)",
        ylabel="accuracy on those (%)",
        title="Accuracy by coverage",
        xlim=(0, 101),
        ylim=(min(low, 95) - 1, 100.5),
    )
    return figure


def _per_class_figure(evaluation: Evaluation) -> Figure:
    order = np.argsort(evaluation.f1, kind="stable")[:_MOST_LABELS]
    names = [evaluation.test.classes[i] for i in order]
    figure, axes = new_figure(6.4, 0.28 * len(names) + 1.4)
    places = np.arange(len(names))
    axes.barh(places - 0.2, evaluation.precision[order], 0.38, label="precision")
    axes.barh(places + 0.2, evaluation.recall[order], 0.38, label="recall")
    axes.set_yticks(places, names)
    axes.set(xlim=(0, 1.01), title="Precision and recall, the hardest classes first")
    axes.grid(visible=False, axis="y")
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _write_curves(path: Path, names: tuple[str, str], curves: Sequence[Curve]) -> None:
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
