"""Training heads on cached features."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from headstart.common.errors import TrainingError
from headstart.common.paths import Project
from headstart.features.feature_store import FeatureStore
from headstart.heads.config import BestHead, HeadConfig
from headstart.heads.folds import assign_folds, folds_of
from headstart.heads.metrics import scores, softmax
from headstart.heads.trainer import HeadTrainer, mean_by_row
from headstart.params.train import TrainParams
from headstart.training.final_fit import TrainedHead, train_model

LINEAR = HeadConfig(hidden_layers=0, epochs=10, learning_rate=1e-2)
NETWORK = HeadConfig(width=16, epochs=10, learning_rate=1e-2)
PROBE = HeadConfig(kind="logistic_regression")


def _best(config: HeadConfig) -> BestHead:
    return BestHead(
        config=config,
        epochs=6,
        metric="log_loss",
        value=0.5,
        study="study",
        trial=0,
        batch_size=32,
    )


@pytest.fixture(scope="module")
def store(workspace: Project) -> Iterator[FeatureStore]:
    """The features of the small workspace."""
    with FeatureStore(workspace.features) as opened:
        yield opened


def _logits(trained: TrainedHead, *splits: str, store: FeatureStore) -> NDArray[np.float32]:
    """Mean logits of the heads on the plain view of some splits."""
    plain = store.split(*splits, layers=trained.layers).features[:, 0]
    return np.asarray(np.mean([head.logits(plain) for head in trained.heads], axis=0))


def _train(store: FeatureStore, config: HeadConfig = NETWORK, **fields: object) -> TrainedHead:
    params = TrainParams.model_validate({"splits": "train", **fields})
    return train_model(store, _best(config), params, seed=0)


def test_one_head_with_its_curve_and_a_temperature(store: FeatureStore) -> None:
    trained = _train(store, seeds=1)
    assert len(trained.heads) == 1
    assert 0.05 < trained.temperature < 20
    assert len(trained.curve) >= trained.heads[0].epochs
    assert {"log_loss", "accuracy"} <= set(trained.curve[0])
    plain = softmax(_logits(trained, "validation", store=store) / trained.temperature)
    again = scores(store.split("validation").label_ids, plain)
    assert trained.scores == pytest.approx(again, abs=1e-5)
    assert trained.scores["accuracy"] > 0.4


def test_linear_heads_of_several_seeds_become_one(store: FeatureStore) -> None:
    one, three = _train(store, LINEAR, seeds=1), _train(store, LINEAR, seeds=3)
    assert len(three.heads) == 1
    assert not np.array_equal(one.heads[0].layers[0].kernel, three.heads[0].layers[0].kernel)


def test_networks_of_several_seeds_become_an_ensemble_or_the_best(store: FeatureStore) -> None:
    ensemble = _train(store, seeds=3)
    best = _train(store, seeds=3, combine="best")
    assert len(ensemble.heads) == 3
    assert len(best.heads) == 1
    validation = store.split("validation")
    losses = [
        scores(validation.label_ids, head.probabilities(validation.features[:, 0]))["log_loss"]
        for head in ensemble.heads
    ]
    assert best.unscaled["log_loss"] == pytest.approx(min(losses), abs=1e-5)


def test_params_win_over_what_the_search_found(store: FeatureStore) -> None:
    changed = _train(store, learning_rate=0.5, weight_decay=0.25, epochs=3)
    config = changed.heads[0].config
    assert (config.learning_rate, config.weight_decay, config.epochs) == (0.5, 0.25, 3)
    assert len(changed.curve) <= 3


@pytest.mark.parametrize("config", [NETWORK, LINEAR, PROBE], ids=["network", "linear", "probe"])
def test_training_on_both_splits_judges_itself_out_of_fold(
    store: FeatureStore, config: HeadConfig
) -> None:
    trained = _train(store, config, splits="train+validation", folds=3)
    assert trained.trained_on["splits"] == ["train", "validation"]
    assert trained.trained_on["n_images"] == len(trained.validation) == 180
    assert set(trained.folds) == {0, 1, 2}
    if config.kind == "network":
        assert {head.epochs for head in trained.heads} == {6}
    in_sample = softmax(_logits(trained, "train", "validation", store=store))
    assert not np.allclose(trained.validation.probabilities, in_sample, atol=1e-3)
    assert trained.scores["accuracy"] > 0.4


@pytest.mark.parametrize("config", [NETWORK, PROBE], ids=["network", "probe"])
def test_out_of_fold_logits_know_nothing_of_their_own_labels(
    store: FeatureStore, config: HeadConfig
) -> None:
    """With labels of pure chance a head remembers its own rows, but cannot guess others."""
    generator = np.random.default_rng(0)
    n = len(store.split("train"))
    noise = generator.normal(size=(n, 1, 60)).astype(np.float32)
    by_chance = generator.integers(0, 4, n)
    folds = folds_of(assign_folds(by_chance, [str(i) for i in range(n)], folds=4, seed=0), [0, 1])
    trainer = HeadTrainer(noise, by_chance, 4, {"last": slice(0, 60)}, batch_size=32)
    found = trainer.cross_validate(
        config.model_copy(update={"l2": 1e-6, "dropout": 0.0}), folds, epochs=30
    )
    rows, logits = mean_by_row(folds, found.logits)
    assert rows.tolist() == list(range(n))
    assert found.curve.epochs == (30 if config.kind == "network" else 1)
    assert (logits.argmax(axis=1) == by_chance).mean() < 0.4
    assert (np.abs(logits).sum(axis=1) > 0).all()


@pytest.mark.parametrize("splits", ["train", "train+validation"])
def test_training_knows_nothing_of_the_test_split(
    store: FeatureStore, tmp_path: Path, splits: str
) -> None:
    shutil.copy(store.path, tmp_path / "features.h5")
    with h5py.File(tmp_path / "features.h5", "r+") as file:
        rows = np.flatnonzero(file["splits"][...] == b"test")
        assert len(rows) == 60
        for row in rows:
            file["features/small/last"][row], file["labels"][row] = np.nan, 0
    known = _train(store, splits=splits)
    with FeatureStore(tmp_path / "features.h5") as others:
        trained = _train(others, splits=splits)
    assert trained.temperature == known.temperature
    assert trained.scores == known.scores
    for made, wanted in zip(trained.heads[0].layers, known.heads[0].layers, strict=True):
        np.testing.assert_array_equal(made.kernel, wanted.kernel)
        np.testing.assert_array_equal(made.bias, wanted.bias)


def test_rows_of_both_splits_stay_in_order(store: FeatureStore) -> None:
    train, validation = store.split("train"), store.split("validation")
    both = store.split("train", "validation")
    assert list(both.paths) == [*train.paths, *validation.paths]
    assert np.array_equal(both.features[len(train) :], validation.features)


def test_an_empty_split_is_an_error_with_the_remedy(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "indices", lambda _: np.arange(0))
    with pytest.raises(TrainingError, match=r"train split, but there are none: add images"):
        _train(store)


def test_best_of_several_seeds_needs_images_to_choose_by() -> None:
    with pytest.raises(ValidationError, match="set combine: ensemble or splits: train"):
        TrainParams(splits="train+validation", combine="best", seeds=2)
