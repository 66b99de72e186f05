"""The search's peers: an Optuna loop around Keras `fit`, and a grid of scikit-learn's.

Both written as one would write them without this project.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import optuna
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from headstart.features.feature_store import FeatureBatch, FeatureStore
from headstart.heads.config import HeadConfig
from headstart.heads.fitted import LAYER_NORM_EPSILON
from headstart.heads.folds import assign_folds
from headstart.heads.metrics import DIRECTION, METRICS
from headstart.heads.network import warmup_steps
from headstart.params.search import SearchParams
from headstart.search.space import asking, suggest

_SCORING = {"accuracy": "accuracy", "log_loss": "neg_log_loss"}
Predict = Callable[[NDArray[np.float32]], NDArray[Any]]


@dataclass(frozen=True)
class PeerResult:
    """What a peer has found; `predict` gives probabilities of features (n, d)."""

    n_trials: int
    seconds: float
    best: float
    predict: Predict


def keras_loop(
    path: Path,
    search: SearchParams,
    *,
    seed: int,
    n_trials: int,
    heads: list[HeadConfig] | None = None,
) -> PeerResult:
    """`study.optimize` over `model.fit`, with early stopping; `heads` fixes what is tried."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with FeatureStore(path) as store:
        pairs = [(store.split("train"), store.split("validation"))]
        n_classes = len(store.classes)
        if search.folds and search.folds > 1:
            both = store.split("train", "validation")
            fold = assign_folds(both.label_ids, both.groups, folds=search.folds, seed=seed)
            pairs = [(_some(both, fold != k), _some(both, fold == k)) for k in range(search.folds)]
    best: dict[str, Any] = {"value": None, "predict": None}
    sign = 1 if DIRECTION[search.metric] == "maximize" else -1

    def objective(trial: optuna.Trial) -> float:
        config = heads[trial.number] if heads else suggest(search.space, asking(trial))
        each = [_fit(config, *pair, n_classes, search, seed) for pair in pairs]
        value, predict = float(np.mean([one for one, _ in each])), each[0][1]
        if best["value"] is None or sign * value > sign * best["value"]:
            best.update(value=value, predict=predict)
        return value

    sampler = optuna.samplers.TPESampler(seed=seed)
    study = optuna.create_study(sampler=sampler, direction=DIRECTION[search.metric])
    started = time.perf_counter()
    study.optimize(objective, n_trials=n_trials)
    seconds = time.perf_counter() - started
    return PeerResult(len(study.trials), seconds, best["value"], best["predict"])


def logistic_grid(path: Path, metric: str) -> PeerResult:
    """`GridSearchCV` over scikit-learn's logistic regression, scored on the validation split."""
    with FeatureStore(path) as store:
        train, validation = store.split("train"), store.split("validation")
    features = np.concatenate([train.features[:, 0], validation.features[:, 0]])
    labels = np.concatenate([train.label_ids, validation.label_ids])
    fold = np.repeat([-1, 0], [len(train), len(validation)])
    strengths = np.logspace(-4, 2, 13)
    grid = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        {"logisticregression__C": strengths},
        scoring=_SCORING[metric],
        cv=PredefinedSplit(fold),
        refit=False,
    )
    started = time.perf_counter()
    grid.fit(features, labels)
    seconds = time.perf_counter() - started
    # The others do not train on validation rows in the end, so this does not either.
    chosen = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    chosen.set_params(**grid.best_params_)
    chosen.fit(train.features[:, 0], train.label_ids)
    return PeerResult(len(strengths), seconds, abs(float(grid.best_score_)), chosen.predict_proba)


def _some(batch: FeatureBatch, kept: NDArray[np.bool_]) -> FeatureBatch:
    rows = np.flatnonzero(kept)
    texts = (
        [values[row] for row in rows.tolist()]
        for values in (batch.sha256, batch.paths, batch.groups)
    )
    return FeatureBatch(batch.features[rows], batch.label_ids[rows], *texts)


def _fit(
    config: HeadConfig,
    train: FeatureBatch,
    validation: FeatureBatch,
    n_classes: int,
    search: SearchParams,
    seed: int,
) -> tuple[float, Predict]:
    if config.kind == "logistic_regression":
        return _fit_probe(config, train, validation, search.metric)
    keras.utils.set_random_seed(seed)
    model = _model(config, train.features[:, 0], n_classes)
    steps = -(-len(train) // search.batch_size)
    loss = keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=config.label_smoothing
    )
    plain = keras.metrics.CategoricalCrossentropy(from_logits=True, name="log_loss")
    model.compile(_optimizer(config, steps * config.epochs), loss, metrics=[plain, "accuracy"])
    watched, is_high_good = f"val_{search.metric}", DIRECTION[search.metric] == "maximize"
    stop = keras.callbacks.EarlyStopping(
        watched,
        mode="max" if is_high_good else "min",
        patience=search.patience,
        restore_best_weights=True,
    )
    one_hot = np.eye(n_classes, dtype=np.float32)
    history = model.fit(
        train.features[:, 0],
        one_hot[train.label_ids],
        batch_size=search.batch_size,
        epochs=config.epochs,
        validation_data=(validation.features[:, 0], one_hot[validation.label_ids]),
        callbacks=[stop],
        verbose=0,
    )
    best = (max if is_high_good else min)(history.history[watched])
    return float(best), lambda rows: model.predict(rows, verbose=0)


def _fit_probe(
    config: HeadConfig, train: FeatureBatch, validation: FeatureBatch, metric: str
) -> tuple[float, Predict]:
    steps: list[Any] = [StandardScaler()] if config.normalisation == "standardise" else []
    classifier = LogisticRegression(C=1 / (config.l2 * len(train)), max_iter=1000)
    model = make_pipeline(*steps, classifier)
    model.fit(train.features[:, 0], train.label_ids)
    found = model.predict_proba(validation.features[:, 0])
    return float(METRICS[metric](validation.label_ids, found)), model.predict_proba


def _model(config: HeadConfig, rows: NDArray[np.float32], n_classes: int) -> keras.Sequential:
    layers: list[Any] = [keras.layers.Input((rows.shape[1],))]
    if config.normalisation == "standardise":
        normalisation = keras.layers.Normalization()
        normalisation.adapt(rows)
        layers.append(normalisation)
    if config.normalisation == "layer_norm":
        layers.append(
            keras.layers.LayerNormalization(epsilon=LAYER_NORM_EPSILON, center=False, scale=False)
        )
    if config.input_dropout:
        layers.append(keras.layers.Dropout(config.input_dropout))
    for _ in range(config.hidden_layers):
        layers.append(keras.layers.Dense(config.width, activation=config.activation))
        layers.append(keras.layers.Dropout(config.dropout))
    layers.append(keras.layers.Dense(n_classes))
    return keras.Sequential(layers)


def _optimizer(config: HeadConfig, total_steps: int) -> keras.optimizers.Optimizer:
    rate: Any = config.learning_rate
    if config.schedule == "cosine":
        warmup = warmup_steps(config, total_steps)
        rate = keras.optimizers.schedules.CosineDecay(
            0.0, total_steps - warmup, warmup_target=rate, warmup_steps=warmup
        )
    if config.optimizer == "sgd":
        return keras.optimizers.SGD(rate, config.momentum, weight_decay=config.weight_decay)
    return keras.optimizers.AdamW(rate, weight_decay=config.weight_decay)
