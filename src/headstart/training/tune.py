"""Does fine-tuning help on these images? It is tried, and kept only if it does.

Brings cached features, packed pixels and trained heads together for `fine_tune`, and decides.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.common import files
from headstart.common.errors import TrainingError
from headstart.dataset.pixel_store import ImageStore
from headstart.features.feature_store import FeatureBatch, FeatureStore
from headstart.heads.fitted import feature_statistics
from headstart.heads.folds import balanced_weights
from headstart.heads.metrics import accuracy, log_loss, scores, softmax
from headstart.heads.temperature import fit_temperature
from headstart.models.assemble import features_model, with_temperature
from headstart.models.novelty import NoveltyReference, fit_novelty
from headstart.models.pixels import BATCH_SIZE, predict_batch
from headstart.models.predictions import as_predictions
from headstart.params.train import FineTuneParams
from headstart.training.final_fit import TrainedHead
from headstart.training.fine_tune import Examples, FineTuned, OnEpoch, fine_tune

if TYPE_CHECKING:
    import keras

# Mean log loss (nats) that a fine-tuned model must save; less does not pay for leaving the cache.
LEAST_GAIN = 0.001
# Of the training loop: another number where its results change.
_VERSION = 1


@dataclass(frozen=True)
class Outcome:
    """What fine-tuning did to the validation images, and whether it is kept.

    Attributes:
        difference: mean log loss that it saves, with its `standard_error`, both calibrated.
    """

    kept: bool
    first_layer: str
    epochs: int
    best_epoch: int
    frozen_log_loss: float
    tuned_log_loss: float
    difference: float
    standard_error: float
    frozen_accuracy: float
    tuned_accuracy: float
    sentence: str

    def as_json(self) -> dict[str, Any]:
        """For metadata and reports."""
        return asdict(self)


@dataclass(frozen=True)
class Tuned:
    """The model that leaves, whichever of the two it is."""

    model: "keras.Model"
    trained: TrainedHead
    outcome: Outcome
    curve: tuple[dict[str, float], ...]


def tune_model(
    model: "keras.Model",
    trained: TrainedHead,
    store: FeatureStore,
    images: ImageStore,
    params: FineTuneParams,
    *,
    seed: int,
    checkpoints: Path,
    on_epoch: OnEpoch | None = None,
) -> Tuned:
    """Fine-tune an assembled model, and keep the result if it is better on validation.

    The frozen model is kept unless the other saves more log loss than one standard error of the
    difference and `LEAST_GAIN`: of two without a significant difference, the simpler one.

    Args:
        checkpoints: the folder of this run's checkpoint, by `checkpoint_folder`. The last one is
            the result, from which the same run ends at once.

    Raises:
        TrainingError: images.h5 lacks images, or fine-tuning cannot be done here.
    """
    train, validation = store.split("train"), store.split("validation")
    rows = _rows(images, store, model)
    frozen_weights = model.get_weights()
    tuned = fine_tune(
        model,
        _examples(images, rows, train, trained, len(store.classes)),
        _examples(images, rows, validation, trained, len(store.classes)),
        params,
        seed=seed,
        checkpoints=checkpoints,
        on_epoch=on_epoch,
    )
    temperature = fit_temperature(tuned.logits, validation.label_ids)
    probabilities = softmax(tuned.logits / temperature)
    outcome = judge(validation, trained.validation.probabilities, probabilities, tuned)
    if not outcome.kept:
        model.set_weights(frozen_weights)
        return Tuned(model, trained, outcome, tuned.curve)
    better = replace(
        trained,
        temperature=temperature,
        validation=as_predictions(validation, "validation", store.classes, probabilities),
        scores=scores(validation.label_ids, probabilities),
        unscaled=scores(validation.label_ids, softmax(tuned.logits)),
    )
    return Tuned(with_temperature(tuned.model, temperature), better, outcome, tuned.curve)


def novelty_of(
    store: FeatureStore,
    layers: Sequence[str],
    model: "keras.Model",
    images: ImageStore | None,
    *,
    seed: int,
) -> NoveltyReference | None:
    """Return what the novelty of images is measured by: the development images' features.

    Args:
        layers: whose blocks the model's head takes.
        images: of a fine-tuned model, which gives other features than the cached ones.
    """
    batch = store.split("train", "validation", layers=layers)
    features = batch.features[:, 0]
    if images is not None:
        rows = _placed(_rows(images, store, model), batch.sha256)
        to_features = features_model(model)
        parts = np.array_split(rows, -(-len(rows) // BATCH_SIZE))
        features = np.concatenate([predict_batch(to_features, images[part]) for part in parts])
    mean, variance = feature_statistics(features, store.columns(layers).values())
    return fit_novelty(features, batch.label_ids, batch.groups, mean, variance, seed=seed)


def checkpoint_folder(
    cache: Path,
    trained: TrainedHead,
    store: FeatureStore,
    encoder: Path,
    params: FineTuneParams,
    seed: int,
) -> Path:
    """Return the folder in the cache of this run's checkpoint: named by all that decides it."""
    arrays = [
        array.tobytes().hex()
        for head in trained.heads
        for layer in head.layers
        for array in (layer.kernel, layer.bias)
    ]
    key = files.sha256_of_json(
        {
            "heads": arrays,
            "version": _VERSION,
            "encoder": files.sha256_of_file(encoder),
            # Of the input pixels: size, resampling and the version of decoding.
            "fingerprint": store.fingerprint,
            "train": sorted(store.split("train").sha256),
            "trained_on": trained.trained_on,
            "validation": sorted(trained.validation.sha256),
            "params": params.model_dump(mode="json"),
            "seed": seed,
        }
    )
    return cache / "fine_tuned" / key[:32]


def judge(
    validation: FeatureBatch,
    frozen: NDArray[np.float64],
    tuned: NDArray[np.float64],
    outcome: FineTuned,
) -> Outcome:
    """Compare the probabilities of the frozen and the tuned model on the validation images."""
    labels = validation.label_ids
    rows = np.arange(len(labels))
    saved = np.log(np.maximum(tuned[rows, labels], 1e-7)) - np.log(
        np.maximum(frozen[rows, labels], 1e-7)
    )
    difference = float(saved.mean())
    error = grouped_error(saved, validation.groups)
    least = max(error, LEAST_GAIN)
    kept = difference > least
    losses = float(log_loss(labels, frozen)), float(log_loss(labels, tuned))
    accuracies = float(accuracy(labels, frozen)), float(accuracy(labels, tuned))
    if kept:
        conclusion = "it is kept"
    elif difference < -least:
        conclusion = "it is worse, so the frozen model stays"
    else:
        conclusion = "too little to tell from chance"
    sentence = (
        f"on {len(labels)} validation images log loss goes from {losses[0]:.3f} to "
        f"{losses[1]:.3f} (saves {difference:.3f}, standard error {error:.3f}) and accuracy from "
        f"{100 * accuracies[0]:.1f} % to {100 * accuracies[1]:.1f} %: {conclusion}."
    )
    return Outcome(
        kept=kept,
        first_layer=outcome.first_layer,
        epochs=len(outcome.curve),
        best_epoch=outcome.best_epoch,
        frozen_log_loss=losses[0],
        tuned_log_loss=losses[1],
        difference=difference,
        standard_error=error,
        frozen_accuracy=accuracies[0],
        tuned_accuracy=accuracies[1],
        sentence=sentence,
    )


def grouped_error(values: NDArray[np.float64], groups: Sequence[str]) -> float:
    """Standard error of the mean where images of a group are drawn together; 0 for one group."""
    ids = np.unique(np.asarray(groups), return_inverse=True)[1]
    sums = np.bincount(ids, values - values.mean())
    if len(sums) < 2:
        return 0.0
    return float(np.sqrt(len(sums) / (len(sums) - 1) * np.square(sums).sum()) / len(values))


def _rows(images: ImageStore, store: FeatureStore, model: "keras.Model") -> dict[str, int]:
    """Where each image is in images.h5, by its hash."""
    size = int(model.input.shape[1])
    if images.shape[1] != size:
        raise TrainingError(
            f"fine-tuning needs images of {size} px, but {images.path} has {images.shape[1]}: "
            "run `dvc repro pack`"
        )
    rows = {sha256: row for row, sha256 in enumerate(images.sha256)}
    wanted = [*store.split("train").sha256, *store.split("validation").sha256]
    missing = sum(sha256 not in rows for sha256 in wanted)
    if missing:
        raise TrainingError(
            f"fine-tuning needs the training and validation images in {images.path}, but "
            f"{missing} of {len(wanted)} are missing: set pack.splits to [train, validation] and "
            "run `dvc repro pack train`"
        )
    return rows


def _examples(
    images: ImageStore,
    rows: dict[str, int],
    batch: FeatureBatch,
    trained: TrainedHead,
    n_classes: int,
) -> Examples:
    weights = np.ones(len(batch), np.float32)
    if trained.config.class_weights == "balanced":
        weights = balanced_weights(batch.label_ids, n_classes)[batch.label_ids]
    return Examples(images, _placed(rows, batch.sha256), batch.label_ids, weights)


def _placed(rows: dict[str, int], sha256: Sequence[str]) -> NDArray[np.int64]:
    return np.array([rows[one] for one in sha256], dtype=np.int64)
