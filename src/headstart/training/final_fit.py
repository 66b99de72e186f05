"""The best head on the cached features becomes heads with an honest confidence.

Where cross-validation chose it, the head is trained on all development images, train and
validation together, and what is said of it is out of fold; else the validation split stops it, sets
the temperature and says how good it is. Knows nothing of files, of pixels and of the test split.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.common import files
from headstart.common.errors import TrainingError
from headstart.features.feature_store import FeatureBatch, FeatureStore
from headstart.heads.config import BestHead, HeadConfig, chosen_layers
from headstart.heads.fit import FitOptions, fit_heads, linear_heads
from headstart.heads.fitted import FittedHead
from headstart.heads.metrics import badness, scores, softmax
from headstart.heads.temperature import fit_temperature
from headstart.models.assemble import average_linear
from headstart.models.predictions import Predictions, as_predictions
from headstart.params.image import ImageParams
from headstart.params.train import TrainParams
from headstart.training.out_of_fold import out_of_fold


@dataclass(frozen=True)
class TrainedHead:
    """Heads whose mean logits, divided by the temperature, are the model's.

    Attributes:
        heads: one, or several whose logits are averaged.
        layers: whose blocks they take.
        validation: calibrated probabilities of images by heads that were not trained on them: of
            the validation split, or out of fold of all development images.
        folds: the fold of each of these images; 0 of the validation split.
        scores: metrics of `validation`.
        unscaled: the same metrics before temperature scaling.
        trained_on: what of the data, as metadata.
    """

    heads: tuple[FittedHead, ...]
    layers: tuple[str, ...]
    temperature: float
    validation: Predictions
    folds: tuple[int, ...]
    scores: dict[str, float]
    unscaled: dict[str, float]
    trained_on: dict[str, Any]

    @property
    def config(self) -> HeadConfig:
        return self.heads[0].config

    def summary(self) -> dict[str, Any]:
        """reports/train/summary.json: metrics on validation, before and after scaling."""
        before = {name: self.unscaled[name] for name in ("log_loss", "brier", "ece")}
        return {
            "temperature": self.temperature,
            "n_heads": len(self.heads),
            "n_epochs": max(head.epochs for head in self.heads),
            "validation": self.scores,
            "validation_before_scaling": before,
        }

    @property
    def curve(self) -> list[dict[str, float]]:
        """Metrics of each epoch on images not trained on: of the first head, or of the folds."""
        curve = self.heads[0].curve
        names = list(curve)
        return [dict(zip(names, row, strict=True)) for row in zip(*curve.values(), strict=True)]


def train_model(
    store: FeatureStore, best: BestHead, params: TrainParams, *, seed: int
) -> TrainedHead:
    """Train the best head as `params` say.

    Raises:
        TrainingError: a split is empty, or the loss is no longer a number.
    """
    for name in ("train", "validation"):
        if len(store.indices(name)) == 0:
            raise TrainingError(
                f"training needs images in the {name} split, but there are none: "
                f"add images (a class of three groups has one in each split), or raise "
                f"ingest.split.{name}"
            )
    layers = chosen_layers(best.config.layers, store.layers)
    settings = Settings.of(best, params, n_classes=len(store.classes), seed=seed)
    if params.trains_on_all(cross_validated=best.folds > 1):
        return _train_on_all(
            store, layers, settings, best.folds if best.folds > 1 else params.folds
        )
    train, validation = (store.split(name, layers=layers) for name in ("train", "validation"))
    heads = fit_heads(
        [settings.config],
        train,
        validation,
        n_classes=settings.n_classes,
        seeds=settings.seeds,
        options=settings.options,
    )
    chosen = combined(heads, validation, best.metric, params.combine)
    logits = mean_logits(chosen, validation)
    temperature = fit_temperature(logits, validation.label_ids)
    folds = (0,) * len(validation)
    return _finish(chosen, layers, temperature, logits, validation, folds, store, ("train",))


def _train_on_all(
    store: FeatureStore, layers: tuple[str, ...], settings: "Settings", folds: int
) -> TrainedHead:
    """Train on both splits, networks for the epochs found; what is said of them is out of fold."""
    both = store.split("train", "validation", layers=layers)
    options = replace(settings.options, epochs=settings.epochs, patience=None)
    unseen = out_of_fold(
        settings.config,
        both,
        n_classes=settings.n_classes,
        seeds=settings.seeds,
        folds=folds,
        epochs=settings.epochs,
        batch_size=options.batch_size,
        metric=options.metric,
    )
    if settings.config.kind == "network":
        heads = fit_heads(
            [settings.config],
            both,
            None,
            n_classes=settings.n_classes,
            seeds=settings.seeds,
            options=options,
        )
    else:
        solver, whole = linear_heads(
            settings.config, both.features, both.label_ids, settings.n_classes
        )
        head = solver.fit(whole, np.arange(len(both)), unseen.temperature)
        heads = [replace(head, config=settings.config)]
    # Without images to choose by, several heads can only be an ensemble.
    chosen = tuple(replace(head, curve=unseen.curve) for head in combined_all(heads))
    judged = np.flatnonzero(unseen.fold >= 0)
    rows = np.concatenate([store.indices("train"), store.indices("validation")])
    logits = unseen.logits[judged]
    temperature = fit_temperature(logits, both.label_ids[judged])
    shown = store.rows(rows[judged], layers)
    places = tuple(unseen.fold[judged].tolist())
    return _finish(
        chosen, layers, temperature, logits, shown, places, store, ("train", "validation")
    )


@dataclass(frozen=True)
class Settings:
    """What training goes by: the search's findings, unless params.yaml says otherwise."""

    config: HeadConfig
    n_classes: int
    seeds: tuple[int, ...]
    options: FitOptions
    epochs: int

    @classmethod
    def of(
        cls,
        best: BestHead,
        params: TrainParams,
        *,
        n_classes: int,
        seed: int,
    ) -> "Settings":
        """Fields of `params` that are not null win."""
        names = ("learning_rate", "weight_decay", "epochs")
        chosen = {name: getattr(params, name) for name in names}
        changes = {name: value for name, value in chosen.items() if value is not None}
        return cls(
            config=best.config.model_copy(update=changes),
            n_classes=n_classes,
            seeds=tuple(range(seed, seed + params.seeds)),
            options=FitOptions(
                batch_size=best.batch_size,
                patience=params.patience,
                metric=best.metric,
                first_epoch=best.first_epoch,
                judged_on=best.judged_on,
            ),
            epochs=params.epochs or best.epochs,
        )


def combined(
    heads: Sequence[FittedHead], validation: FeatureBatch, metric: str, how: str
) -> tuple[FittedHead, ...]:
    """Heads of several seeds as one where that is exact, else as an ensemble or the best one."""
    every = combined_all(heads)
    if len(every) == 1 or how == "ensemble":
        return every
    return (min(heads, key=lambda head: badness(metric, _scores(head, validation))),)


def combined_all(heads: Sequence[FittedHead]) -> tuple[FittedHead, ...]:
    """Heads of several seeds: as one where that is exact, else all of them."""
    average = average_linear(heads)
    return tuple(heads) if average is None else (average,)


def mean_logits(heads: Sequence[FittedHead], batch: FeatureBatch) -> NDArray[np.float64]:
    """Mean of the heads' logits on the plain view: shape (n_images, n_classes)."""
    plain = np.ascontiguousarray(batch.features[:, 0])
    logits = [head.logits(plain) for head in heads]
    return np.asarray(np.mean(logits, axis=0, dtype=np.float64))


def _finish(
    heads: tuple[FittedHead, ...],
    layers: tuple[str, ...],
    temperature: float,
    logits: NDArray[np.float64],
    judged: FeatureBatch,
    folds: tuple[int, ...],
    store: FeatureStore,
    splits: tuple[str, ...],
) -> TrainedHead:
    """Score the logits of images by heads that were not trained on them."""
    probabilities = softmax(logits / temperature)
    rows = np.concatenate([store.indices(name) for name in splits])
    hashes = sorted(store.sha256[row] for row in rows.tolist())
    return TrainedHead(
        heads=heads,
        layers=layers,
        temperature=temperature,
        validation=as_predictions(judged, "validation", store.classes, probabilities),
        folds=folds,
        scores=scores(judged.label_ids, probabilities),
        unscaled=scores(judged.label_ids, softmax(logits)),
        trained_on={
            "splits": list(splits),
            "n_images": len(hashes),
            "images_sha256": files.sha256_of_json(hashes),
        },
    )


def model_metadata(
    store: FeatureStore,
    trained: TrainedHead,
    image: ImageParams,
    fine_tuned: dict[str, Any] | None,
) -> dict[str, Any]:
    """What models/model.h5 says about itself: JSON values that depend on data and params alone."""
    return {
        "classes": list(store.classes),
        "image": image.model_dump(mode="json"),
        "fingerprint": store.fingerprint,
        "extractor": store.contract,
        "layers": list(trained.layers),
        "head": trained.config.model_dump(mode="json"),
        "n_heads": len(trained.heads),
        "epochs": [head.epochs for head in trained.heads],
        "temperature": trained.temperature,
        "trained_on": trained.trained_on,
        "fine_tuned": fine_tuned,
    }


def _scores(head: FittedHead, validation: FeatureBatch) -> dict[str, float]:
    return scores(validation.label_ids, softmax(mean_logits([head], validation)))
