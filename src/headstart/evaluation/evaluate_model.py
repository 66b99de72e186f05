"""How good a model is on images it has never seen. The only reader of the test split.

Probabilities come from the cached features through the head inside model.h5, and a sample of images
through the whole of model.h5 must give the same; a fine-tuned model sees every image itself. Knows
nothing of reports.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headstart.common.errors import TrainingError
from headstart.evaluation.bootstrap import Interval, intervals, of_all_or_none
from headstart.evaluation.novel_images import NoveltyEvaluation, evaluate_novelty
from headstart.features.feature_store import FeatureStore
from headstart.heads.metrics import scores, softmax, squared_ece
from headstart.images.decode import MAX_PIXELS, decode_input
from headstart.models.model_file import LoadedModel
from headstart.models.predictions import Predictions, as_predictions

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
    novel: NoveltyEvaluation | None = None

    def flat_metrics(self) -> dict[str, float]:
        """Return what reports/metrics.json says, but for the run's id."""
        accuracy = self.intervals["accuracy"]
        first = {
            "accuracy": self.scores["accuracy"],
            "accuracy_ci95_low": accuracy.low,
            "accuracy_ci95_high": accuracy.high,
        }
        novel = self.novel.metrics() if self.novel is not None else {}
        return {**first, **self.scores, **novel, "n_test": len(self.test)}


def evaluate_model(
    store: FeatureStore,
    loaded: LoadedModel,
    fetched: Path,
    *,
    n_bootstrap: int,
    seed: int,
    max_pixels: int = MAX_PIXELS,
) -> Evaluation:
    """Evaluate a model on the test split.

    Args:
        fetched: the folder that the store's image paths are relative to.
        max_pixels: the limit that these images were accepted under.

    Raises:
        TrainingError: the features are not those the model was made for, or do not lead to the
            probabilities that the model gives for the images themselves.
    """
    from sklearn import metrics

    if store.fingerprint != loaded.metadata["fingerprint"] or store.classes != loaded.classes:
        raise TrainingError(
            f"model.h5 must be made for the features in {store.path}, but it is for the extractor "
            f"{loaded.metadata['fingerprint'][:12]} and these are of {store.fingerprint[:12]}, or "
            "the classes differ: run `dvc repro train`"
        )
    batch = store.split("test", layers=loaded.metadata.get("layers"))
    if len(batch) == 0:
        raise TrainingError("evaluation needs test images, but there are none: raise split.test")
    paths = [fetched / path for path in batch.paths]
    features = batch.features[:, 0]

    def computed(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        pixels = decode_input(path.read_bytes(), loaded.image, max_pixels=max_pixels)
        return loaded.inference.outputs(pixels)

    if loaded.metadata["fine_tuned"]:
        features = np.stack([one for one, _ in loaded.inference.in_threads(computed, paths)])
    logits = loaded.inference.logits(features)
    temperature = float(loaded.metadata["temperature"])
    probabilities = softmax(logits / temperature)

    n_checked, difference = _checked_on_images(
        paths, probabilities, TOLERANCE[store.recipe["precision"]], lambda path: computed(path)[1]
    )
    label_ids, every_class = batch.label_ids, np.arange(len(loaded.classes))
    novel = None
    if loaded.novelty is not None:
        novel = evaluate_novelty(loaded.novelty, features, label_ids, probabilities)
    predicted_ids = probabilities.argmax(axis=1)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        label_ids, predicted_ids, labels=every_class, zero_division=0
    )
    return Evaluation(
        test=replace(
            as_predictions(batch, "test", loaded.classes, probabilities),
            novelty=None if novel is None else novel.novelty,
        ),
        groups=tuple(batch.groups),
        scores=scores(label_ids, probabilities),
        intervals=score_intervals(
            label_ids, probabilities, batch.groups, n_resamples=n_bootstrap, seed=seed
        ),
        confusion=metrics.confusion_matrix(label_ids, predicted_ids, labels=every_class),
        precision=precision,
        recall=recall,
        f1=f1,
        support=support,
        unscaled=softmax(logits),
        temperature=temperature,
        n_checked=n_checked,
        largest_difference=difference,
        novel=novel,
    )


def _checked_on_images(
    paths: Sequence[Path],
    probabilities: NDArray[np.float64],
    tolerance: float,
    computed: Callable[[Path], NDArray[np.float32]],
) -> tuple[int, float]:
    """Hold what cached features lead to, to the whole model on images, evenly spread ones.

    Returns how many images, and the largest difference.
    """
    checked = np.unique(np.linspace(0, len(paths) - 1, min(len(paths), N_CHECKED)).astype(np.int64))
    files = [paths[row] for row in checked]
    direct = np.stack([computed(file) for file in files])
    differences = np.abs(direct - probabilities[checked]).max(axis=1)
    worst = int(differences.argmax())
    if differences[worst] > tolerance:
        raise TrainingError(
            f"the head on cached features and model.h5 must agree to {tolerance:g}, but on "
            f"{files[worst].name} they differ by {differences[worst]:.2g}: data/features.h5 is of "
            "other images or of another encoder; make both again with "
            "`dvc repro --force extract train`"
        )
    return len(files), float(differences[worst])


def score_intervals(
    label_ids: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    groups: Sequence[str],
    *,
    n_resamples: int,
    seed: int,
) -> dict[str, Interval]:
    """Return 95 % bootstrap intervals of `scores`, by name; whole groups are drawn."""

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
    found["ece"] = Interval(low, high)
    for name in ("accuracy", "top_3_accuracy"):
        if name in found:
            found[name] = of_all_or_none(found[name], groups)
    return found
