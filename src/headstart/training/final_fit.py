"""The best head on the cached features becomes heads with an honest confidence.

Training touches the train split, and the validation split to stop, to set the temperature and to
say how good the head is. Knows nothing of files, of pixels and of the test split.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.common import files
from headstart.common.errors import TrainingError
from headstart.features.feature_store import FeatureBatch, FeatureStore
from headstart.heads.config import BestHead, HeadConfig
from headstart.heads.fit import FitOptions, fit_heads
from headstart.heads.fitted import FittedHead
from headstart.heads.metrics import badness, scores, softmax
from headstart.models.assemble import average_linear
from headstart.models.predictions import Predictions, as_predictions
from headstart.params.image import ImageParams
from headstart.params.train import TrainParams
from headstart.training.calibration import fit_temperature
from headstart.training.out_of_fold import out_of_fold


@dataclass(frozen=True)
class TrainedHead:
    """Heads whose mean logits, divided by the temperature, are the model's.

    Attributes:
        heads: one, or several whose logits are averaged.
        validation: calibrated probabilities of the validation images; out-of-fold where the heads
            were trained on them too.
        scores: metrics of `validation`.
        unscaled: the same metrics before temperature scaling.
        trained_on: what of the data, as metadata.
    """

    heads: tuple[FittedHead, ...]
    temperature: float
    validation: Predictions
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
    train, validation = store.split("train"), store.split("validation")
    for name, batch in (("train", train), ("validation", validation)):
        if len(batch) == 0:
            raise TrainingError(
                f"training needs images in the {name} split, but there are none: "
                f"add images (a class of three groups has one in each split), or raise "
                f"ingest.split.{name}"
            )
    settings = Settings.of(best, params, n_classes=len(store.classes), seed=seed)
    if params.splits == "train+validation":
        return _train_on_all(train, validation, settings, params, store.classes)
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
    return finish(chosen, logits, validation, store.classes, {"train": train})


def _train_on_all(
    train: FeatureBatch,
    validation: FeatureBatch,
    settings: "Settings",
    params: TrainParams,
    classes: Sequence[str],
) -> TrainedHead:
    """Train on both splits for the epochs found; what is said of validation is out-of-fold."""
    both = joined(train, validation)
    options = replace(settings.options, epochs=settings.epochs, patience=None)
    heads = fit_heads(
        [settings.config],
        both,
        None,
        n_classes=settings.n_classes,
        seeds=settings.seeds,
        options=options,
    )
    unseen = out_of_fold(
        settings.config,
        both,
        n_classes=settings.n_classes,
        seeds=settings.seeds,
        folds=params.folds,
        epochs=settings.epochs,
        batch_size=options.batch_size,
        metric=options.metric,
    )
    # Without images to choose by, several heads can only be an ensemble.
    chosen = combined(heads, validation, options.metric, "ensemble")
    temperature = fit_temperature(unseen.logits, both.label_ids)
    return finish(
        tuple(replace(head, curve=unseen.curve) for head in chosen),
        unseen.logits[len(train) :],
        validation,
        classes,
        {"train": train, "validation": validation},
        temperature=temperature,
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
    average = average_linear(heads)
    if average is not None:
        return (average,)
    if how == "ensemble":
        return tuple(heads)
    return (min(heads, key=lambda head: badness(metric, _scores(head, validation))),)


def mean_logits(heads: Sequence[FittedHead], batch: FeatureBatch) -> NDArray[np.float64]:
    """Mean of the heads' logits on the plain view: shape (n_images, n_classes)."""
    plain = np.ascontiguousarray(batch.features[:, 0])
    logits = [head.logits(plain) for head in heads]
    return np.asarray(np.mean(logits, axis=0, dtype=np.float64))


def finish(
    heads: tuple[FittedHead, ...],
    logits: NDArray[np.float64],
    validation: FeatureBatch,
    classes: Sequence[str],
    trained_on: Mapping[str, FeatureBatch],
    *,
    temperature: float | None = None,
) -> TrainedHead:
    """Score on validation; unless one is given, set the temperature there too.

    Args:
        logits: of the validation images, by heads that were not trained on them.
    """
    if temperature is None:
        temperature = fit_temperature(logits, validation.label_ids)
    probabilities = softmax(logits / temperature)
    return TrainedHead(
        heads=heads,
        temperature=temperature,
        validation=as_predictions(validation, "validation", classes, probabilities),
        scores=scores(validation.label_ids, probabilities),
        unscaled=scores(validation.label_ids, softmax(logits)),
        trained_on=describe(trained_on),
    )


def joined(first: FeatureBatch, second: FeatureBatch) -> FeatureBatch:
    """The rows of both."""
    return FeatureBatch(
        features=np.concatenate([first.features, second.features]),
        label_ids=np.concatenate([first.label_ids, second.label_ids]),
        sha256=[*first.sha256, *second.sha256],
        paths=[*first.paths, *second.paths],
        groups=[*first.groups, *second.groups],
    )


def describe(batches: Mapping[str, FeatureBatch]) -> dict[str, Any]:
    """Which images a model was trained on: their splits, count, and a hash of their hashes."""
    hashes = sorted(sha256 for batch in batches.values() for sha256 in batch.sha256)
    return {
        "splits": list(batches),
        "n_images": len(hashes),
        "images_sha256": files.sha256_of_json(hashes),
    }


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
        "head": trained.config.model_dump(mode="json"),
        "n_heads": len(trained.heads),
        "epochs": [head.epochs for head in trained.heads],
        "temperature": trained.temperature,
        "trained_on": trained.trained_on,
        "fine_tuned": fine_tuned,
    }


def _scores(head: FittedHead, validation: FeatureBatch) -> dict[str, float]:
    return scores(validation.label_ids, softmax(mean_logits([head], validation)))
