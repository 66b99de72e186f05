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
from headstart.features.feature_store import FeatureStore
from headstart.heads.config import BestHead, EnsembleMember, HeadConfig, chosen_layers
from headstart.heads.fitted import FittedHead
from headstart.heads.folds import Fold, assign_folds, count_folds, folds_of
from headstart.heads.metrics import DIRECTION, objective, scores, softmax
from headstart.heads.temperature import fit_temperature
from headstart.heads.trainer import HeadTrainer, mean_by_row
from headstart.models.assemble import average_linear, weighted_mean
from headstart.models.predictions import Predictions
from headstart.params.image import ImageParams
from headstart.params.train import TrainParams


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
        optimism: accuracy beyond what to expect on new images: the best of many is partly luck.
        members: of an ensemble of trials.
    """

    heads: tuple[FittedHead, ...]
    layers: tuple[str, ...]
    temperature: float
    validation: Predictions
    folds: tuple[int, ...]
    scores: dict[str, float]
    unscaled: dict[str, float]
    trained_on: dict[str, Any]
    optimism: float = 0.0
    members: tuple[EnsembleMember, ...] = ()

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
    _check_splits(store)
    changes = {name: getattr(params, name) for name in ("learning_rate", "weight_decay", "epochs")}
    config = best.config.model_copy(
        update={name: value for name, value in changes.items() if value is not None}
    )
    single = EnsembleMember(config=config, epochs=best.epochs, times=1, trial=best.trial)
    members: tuple[EnsembleMember, ...] = (single,)
    # A solved head is the same from every seed.
    n_seeds = params.seeds if config.kind == "network" else 1
    ensemble = best.ensemble if params.combine == "trials" and config == best.config else None
    if ensemble is not None:
        members, n_seeds = ensemble.members, 1  # several heads already
    seeds = range(seed, seed + n_seeds)
    n_train = len(store.indices("train"))
    batch = store.split("train", "validation")
    labels, every = batch.label_ids, np.arange(len(batch))
    trainer = HeadTrainer(
        batch.features,
        labels,
        len(store.classes),
        store.columns(),
        batch_size=best.batch_size,
        metric=best.metric,
    )
    is_on_all = params.trains_on_all(cross_validated=best.folds > 1)
    if is_on_all:
        splits = ["train", "validation"]
        most = best.folds if best.folds > 1 else params.folds
        n_folds = count_folds(labels, batch.groups, most)
        fold_of_row = assign_folds(labels, batch.groups, folds=n_folds, seed=seed)
        folds = folds_of(fold_of_row, seeds)
    else:
        splits, fold_of_row = ["train"], np.where(every < n_train, -1, 0)
        folds = [Fold(every[:n_train], every[n_train:], own) for own in seeds]
    heads, weights, logits = list[FittedHead](), list[float](), np.zeros(())
    for member in members:
        if is_on_all:
            epochs = params.epochs or member.epochs
            own, of_own = _on_all_rows(trainer, member.config, folds, every, seeds, epochs)
        else:
            seen = labels[n_train:]
            own, of_own = _on_train_rows(trainer, member.config, folds, seen, best, params)
        share = member.times / sum(one.times for one in members)
        logits = logits + share * of_own
        heads += own
        weights += [share / len(own)] * len(own)
    layers = chosen_layers(config.layers, store.layers)
    if ensemble is not None:
        joined = weighted_mean(heads, weights, trainer.blocks)
        heads = [replace(head, curve=heads[0].curve) for head in joined]
        layers = chosen_layers(heads[0].config.layers, store.layers)
    judged = np.flatnonzero(fold_of_row >= 0)
    labels = labels[judged]
    temperature = fit_temperature(logits, labels)
    probabilities = softmax(logits / temperature)
    # A head that params.yaml changed was not chosen on these images.
    chosen = ensemble or (best if config == best.config else None)
    hashes = sorted(store.sha256[row] for name in splits for row in store.indices(name).tolist())
    return TrainedHead(
        heads=tuple(heads),
        layers=layers,
        temperature=temperature,
        validation=Predictions(
            classes=store.classes,
            split="validation",
            paths=tuple(batch.paths[row] for row in judged.tolist()),
            sha256=tuple(batch.sha256[row] for row in judged.tolist()),
            label_ids=labels,
            probabilities=probabilities,
        ),
        folds=tuple(fold_of_row[judged].tolist()),
        scores=scores(labels, probabilities),
        unscaled=scores(labels, softmax(logits)),
        trained_on={
            "splits": splits,
            "n_images": len(hashes),
            "images_sha256": files.sha256_of_json(hashes),
        },
        optimism=chosen.optimism if chosen is not None else 0.0,
        members=ensemble.members if ensemble is not None else (),
    )


def _check_splits(store: FeatureStore) -> None:
    for name in ("train", "validation"):
        if len(store.indices(name)) == 0:
            raise TrainingError(
                f"training needs images in the {name} split, but there are none: "
                f"add images (a class of three groups has one in each split), or raise "
                f"ingest.split.{name}"
            )


def _on_all_rows(
    trainer: HeadTrainer,
    config: HeadConfig,
    folds: Sequence[Fold],
    rows: NDArray[np.int64],
    seeds: Sequence[int],
    epochs: int,
) -> tuple[list[FittedHead], NDArray[np.float64]]:
    """Heads trained on all rows, and logits of rows that some fold holds out."""
    found = trainer.cross_validate(config, folds, epochs=epochs)
    heads = trainer.fit(config, rows, seeds, epochs=epochs, temperature=found.temperature)
    # Without images to choose by, several heads can only be an ensemble.
    heads = [replace(head, curve=found.curve.values) for head in merged(heads)]
    return heads, mean_by_row(folds, found.logits)[1]


def _on_train_rows(
    trainer: HeadTrainer,
    config: HeadConfig,
    folds: Sequence[Fold],
    label_ids: NDArray[np.int64],
    best: BestHead,
    params: TrainParams,
) -> tuple[list[FittedHead], NDArray[np.float64]]:
    """Heads stopped by the validation rows, whose labels are `label_ids`, and logits of these."""
    found = trainer.cross_validate(config, folds, patience=params.patience, keep_heads=True)
    heads, logits = merged(found.heads), found.logits
    if len(heads) > 1 and params.combine == "best":
        sign = 1 if DIRECTION[best.metric] == "maximize" else -1
        values = [sign * objective(best.metric, scores(label_ids, softmax(z))) for z in logits]
        chosen = int(np.argmax(values))
        heads, logits = [heads[chosen]], [logits[chosen]]
    return heads, np.mean(logits, axis=0, dtype=np.float64)


def merged(heads: Sequence[FittedHead]) -> list[FittedHead]:
    """Heads of several seeds: as one where that is exact, else all of them."""
    average = average_linear(heads)
    return list(heads) if average is None else [average]


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
        "extractor": store.recipe,
        "layers": list(trained.layers),
        "head": trained.config.model_dump(mode="json"),
        "ensemble": [member.model_dump(mode="json") for member in trained.members],
        "n_heads": len(trained.heads),
        "epochs": [head.epochs for head in trained.heads],
        "temperature": trained.temperature,
        "optimism": trained.optimism,
        "trained_on": trained.trained_on,
        "fine_tuned": fine_tuned,
    }
