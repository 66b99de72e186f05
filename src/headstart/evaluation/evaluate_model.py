"""How good a model is on images it has never seen. The only reader of the test split.

Probabilities come from the cached features through the head inside model.h5, and a sample of images
through the whole of model.h5 must give the same; a fine-tuned model sees every image itself. Knows
nothing of reports.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headstart.common.errors import TrainingError
from headstart.evaluation.bootstrap import Interval, intervals
from headstart.features.feature_store import FeatureBatch, FeatureStore
from headstart.heads.metrics import ece, log_loss, scores, softmax, squared_ece
from headstart.images.decode import MAX_PIXELS
from headstart.models.assemble import logits_model
from headstart.models.model_file import LoadedModel
from headstart.models.pixels import predict_files
from headstart.models.predictions import Predictions, as_predictions
from headstart.params.image import ImageParams

N_CHECKED = 32
# Features of lower precision are near those of the float32 model that is served, not equal.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}


@dataclass(frozen=True)
class Evaluation:
    """What the test split says.

    Attributes:
        test: the predictions that everything here is computed from.
        groups: group key of each test image.
        scores, intervals: metrics by name, and their 95 % bootstrap intervals.
        confusion: int64, shape (n_classes, n_classes); rows are true, columns predicted classes.
        precision, recall, f1: float64, shape (n_classes,); 0 where nothing was predicted or true.
        support: int64, shape (n_classes,); test images of each class.
        unscaled: probabilities before temperature scaling, float64, shape (n_images, n_classes).
        largest_difference: between cached features and model.h5, of `n_checked` images.
    """

    test: Predictions
    groups: tuple[str, ...]
    scores: dict[str, float]
    intervals: dict[str, Interval]
    confusion: NDArray[np.int64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    support: NDArray[np.int64]
    unscaled: NDArray[np.float64]
    temperature: float
    n_checked: int
    largest_difference: float

    def flat_metrics(self) -> dict[str, float]:
        """What reports/metrics.json says, but for the run's id."""
        accuracy = self.intervals["accuracy"]
        first = {
            "accuracy": self.scores["accuracy"],
            "accuracy_ci95_low": accuracy.low,
            "accuracy_ci95_high": accuracy.high,
        }
        return {**first, **self.scores, "n_test": len(self.test)}

    def calibration(self) -> dict[str, float]:
        """Calibration error and log loss, before and after temperature scaling."""
        labels = self.test.label_ids
        return {
            "ece_before": float(ece(labels, self.unscaled)),
            "ece_after": self.scores["ece"],
            "log_loss_before": float(log_loss(labels, self.unscaled)),
            "log_loss_after": self.scores["log_loss"],
        }


def evaluate_model(
    store: FeatureStore,
    loaded: LoadedModel,
    fetched: Path,
    *,
    n_bootstrap: int,
    seed: int,
    max_pixels: int = MAX_PIXELS,
) -> Evaluation:
    """Evaluate on the test split.

    Args:
        fetched: the folder that the store's image paths are relative to.
        max_pixels: the limit that these images were accepted under.

    Raises:
        TrainingError: the features are not those the model was made for, or do not lead to the
            probabilities that the model gives for the images themselves.
    """
    from sklearn import metrics

    _check_fingerprint(store, loaded)
    batch = store.split("test")
    if len(batch) == 0:
        raise TrainingError("evaluation needs test images, but there are none: raise split.test")
    temperature = float(loaded.metadata["temperature"])
    logits = _logits(loaded, batch, fetched, max_pixels)
    probabilities = softmax(logits / temperature)
    checked = _spread(len(batch), N_CHECKED)
    files = _files(batch, fetched)
    difference = _largest_difference(
        loaded,
        [files[row] for row in checked],
        probabilities[checked],
        TOLERANCE[store.contract["precision"]],
        max_pixels,
    )
    label_ids = batch.label_ids
    predicted_ids, every_class = probabilities.argmax(axis=1), np.arange(len(loaded.classes))
    confusion = metrics.confusion_matrix(label_ids, predicted_ids, labels=every_class)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        label_ids, predicted_ids, labels=every_class, zero_division=0
    )
    return Evaluation(
        test=as_predictions(batch, "test", loaded.classes, probabilities),
        groups=tuple(batch.groups),
        scores=scores(label_ids, probabilities),
        intervals=score_intervals(
            label_ids, probabilities, batch.groups, n_resamples=n_bootstrap, seed=seed
        ),
        confusion=confusion,
        precision=precision,
        recall=recall,
        f1=f1,
        support=support,
        unscaled=softmax(logits),
        temperature=temperature,
        n_checked=len(checked),
        largest_difference=difference,
    )


def score_intervals(
    label_ids: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    groups: Sequence[str],
    *,
    n_resamples: int,
    seed: int,
) -> dict[str, Interval]:
    """95 % bootstrap intervals of `scores`, by name; whole groups are drawn."""

    def statistics(rows: NDArray[np.int64]) -> dict[str, float]:
        labels, drawn = label_ids[rows], probabilities[rows]
        return {**scores(labels, drawn), "ece": float(squared_ece(labels, drawn))}

    found = intervals(
        statistics,
        groups,
        n_resamples=n_resamples,
        seed=seed,
        estimates={"ece": float(squared_ece(label_ids, probabilities))},
    )
    squared = found["ece"]
    low, high = (math.sqrt(max(bound, 0.0)) for bound in (squared.low, squared.high))
    return {**found, "ece": Interval(low, high)}


def _logits(
    loaded: LoadedModel, batch: FeatureBatch, fetched: Path, max_pixels: int
) -> NDArray[np.float32]:
    if loaded.metadata["fine_tuned"]:
        model = logits_model(loaded.model, from_features=False)
        files = _files(batch, fetched)
        return predict_files(model, files, _image(loaded), max_pixels=max_pixels)
    model = logits_model(loaded.model, from_features=True)
    return np.asarray(model.predict(batch.features[:, 0], batch_size=1024, verbose=0))


def _largest_difference(
    loaded: LoadedModel,
    files: Sequence[Path],
    probabilities: NDArray[np.float64],
    tolerance: float,
    max_pixels: int,
) -> float:
    """Between probabilities and those that the whole model gives for the images themselves."""
    direct = predict_files(loaded.model, files, _image(loaded), max_pixels=max_pixels)
    differences = np.abs(direct - probabilities).max(axis=1)
    worst = int(differences.argmax())
    if differences[worst] > tolerance:
        raise TrainingError(
            f"the head on cached features and model.h5 must agree to {tolerance:g}, but on "
            f"{files[worst].name} they differ by {differences[worst]:.2g}: data/features.h5 is of "
            "other images or of another encoder; make both again with "
            "`dvc repro --force extract train`"
        )
    return float(differences[worst])


def _check_fingerprint(store: FeatureStore, loaded: LoadedModel) -> None:
    if store.fingerprint != loaded.metadata["fingerprint"] or store.classes != loaded.classes:
        raise TrainingError(
            f"model.h5 must be made for the features in {store.path}, but it is for the extractor "
            f"{loaded.metadata['fingerprint'][:12]} and these are of {store.fingerprint[:12]}, or "
            "the classes differ: run `dvc repro train`"
        )


def _spread(n: int, count: int) -> NDArray[np.int64]:
    """At most `count` row numbers, evenly over `n` rows."""
    return np.unique(np.linspace(0, n - 1, min(n, count)).astype(np.int64))


def _files(batch: FeatureBatch, fetched: Path) -> list[Path]:
    return [fetched / path for path in batch.paths]


def _image(loaded: LoadedModel) -> ImageParams:
    return ImageParams.model_validate(loaded.metadata["image"])
