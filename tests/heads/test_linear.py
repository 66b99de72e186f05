"""Logistic regression is scikit-learn's; ridge is penalised least squares, as if fitted anew."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge

from headstart.common.errors import SearchError
from headstart.heads.config import chosen_layers
from headstart.heads.fitted import feature_statistics
from headstart.heads.folds import Fold, assign_folds, folds_of
from headstart.heads.linear import RIDGE_PENALTIES, LinearHeads, row_space
from headstart.heads.metrics import log_loss
from headstart.params.head import HeadConfig


def some_rows(
    n: int, d: int, n_classes: int, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    chance = np.random.default_rng(seed)
    label_ids = chance.permutation(np.arange(n) % n_classes).astype(np.int64)
    centres = chance.standard_normal((n_classes, d))
    features = centres[label_ids] * 0.5 + chance.standard_normal((n, d)) + 2
    return features.astype(np.float32), label_ids


def heads_on(
    features: NDArray[np.float32], label_ids: NDArray[np.int64], n_classes: int
) -> LinearHeads:
    d = features.shape[1]
    blocks = {"last": slice(0, d // 2), "stage": slice(d // 2, d)}
    return LinearHeads(features[:, None], label_ids, n_classes, blocks)


def some_folds(label_ids: NDArray[np.int64], n_folds: int = 4) -> list[Fold]:
    keys = [str(i) for i in range(len(label_ids))]
    return folds_of(assign_folds(label_ids, keys, folds=n_folds, seed=0), [0])


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize(("n", "d"), [(120, 10), (40, 90)])
@pytest.mark.parametrize("normalisation", ["none", "standardise"])
def test_logistic_regression_equals_scikit_learn(
    n_classes: int, n: int, d: int, normalisation: str
) -> None:
    features, label_ids = some_rows(n, d, n_classes)
    config = HeadConfig.model_validate(
        {"kind": "logistic_regression", "l2": 0.05, "normalisation": normalisation}
    )
    head = heads_on(features, label_ids, n_classes).fit(config, np.arange(n))
    # Two classes are one logit there, whose penalty is twice as large for the same probabilities.
    strength = 1 / (config.l2 * n) * (2 if n_classes == 2 else 1)
    peer = LogisticRegression(C=strength, tol=1e-9, max_iter=5000)
    peer.fit(head.normalised(features).astype(np.float64), label_ids)
    expected = peer.predict_proba(head.normalised(features))
    np.testing.assert_allclose(head.probabilities(features), expected, atol=2e-3)


def test_classes_weigh_the_same_where_asked() -> None:
    features, label_ids = some_rows(90, 6, 3)
    rows = np.concatenate([np.flatnonzero(label_ids == 0)[:5], np.flatnonzero(label_ids > 0)])
    config = HeadConfig(kind="logistic_regression", l2=0.01, class_weights="balanced")
    head = heads_on(features, label_ids, 3).fit(config, np.sort(rows))
    peer = LogisticRegression(
        C=1 / (0.01 * len(rows)), class_weight="balanced", tol=1e-9, max_iter=5000
    )
    peer.fit(head.normalised(features[rows]).astype(np.float64), label_ids[rows])
    expected = peer.predict_proba(head.normalised(features))
    np.testing.assert_allclose(head.probabilities(features), expected, atol=2e-3)


def test_a_class_without_training_rows_is_never_answered() -> None:
    features, label_ids = some_rows(60, 8, 3)
    for kind in ("ridge", "logistic_regression"):
        config = HeadConfig.model_validate({"kind": kind})
        head = heads_on(features, label_ids, 3).fit(config, np.flatnonzero(label_ids != 1))
        assert 1 not in head.logits(features).argmax(axis=1)


def test_row_space_is_an_exact_rotation() -> None:
    chance = np.random.default_rng(0)
    rows = chance.standard_normal((30, 400))
    rows[7] = rows[3]
    rotated, back = row_space(rows)
    basis = rows.T @ back
    assert rotated.shape == (30, 29)
    np.testing.assert_allclose(rotated @ basis.T, rows, atol=1e-9)
    np.testing.assert_allclose(basis.T @ basis, np.eye(29), atol=1e-9)


def standardised(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """By shrunk variances: the mean variance of a feature's block is added to its own."""
    exact, d = features.astype(np.float64), features.shape[1]
    variance = exact.var(0).reshape(2, d // 2)
    shrunk = variance + variance.mean(axis=1, keepdims=True)
    return np.asarray((exact - exact.mean(0)) / np.sqrt(shrunk.reshape(-1)))


def test_a_constant_feature_changes_no_other() -> None:
    features, _ = some_rows(30, 8, 2)
    alone = feature_statistics(features, [slice(0, 8)])[1]
    wider = np.hstack([features, np.full((30, 4), 7.0, np.float32)])
    variance = feature_statistics(wider, [slice(0, 12)])[1]
    np.testing.assert_allclose(variance[:8], alone, rtol=1e-6)
    assert (variance[8:] == 1).all()
    assert (feature_statistics(wider[:, 8:], [slice(0, 4)])[1] == 1).all()


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
@pytest.mark.parametrize("layers", ["last", "stage", "all"])
@pytest.mark.parametrize(("n", "d"), [(200, 12), (60, 50), (60, 200)], ids=["tall", "even", "wide"])
def test_every_fold_and_penalty_is_as_if_fitted_anew(
    n: int, d: int, layers: str, class_weights: Any
) -> None:
    features, label_ids = some_rows(n, d, 3)
    label_ids[:20] = 0
    config = HeadConfig(kind="ridge", layers=layers, class_weights=class_weights)
    folds = some_folds(label_ids)
    solver = heads_on(features, label_ids, 3)
    every = solver.out_of_fold(config, folds, path=True)
    assert [one.config.penalty for one in every] == list(RIDGE_PENALTIES)
    columns = {"last": slice(0, d // 2), "stage": slice(d // 2, d), "all": slice(0, d)}[layers]
    design = standardised(features)[:, columns]
    weights = np.ones(n)
    if class_weights == "balanced":
        weights = (n / (3 * np.bincount(label_ids)))[label_ids]
    for one in every:
        for fold, logits in zip(folds, one.logits, strict=True):
            kept = fold.train
            peer = Ridge(alpha=one.config.penalty, solver="cholesky")
            peer.fit(design[kept], np.eye(3)[label_ids[kept]], sample_weight=weights[kept])
            expected = peer.predict(design[fold.validation])
            np.testing.assert_allclose(logits * one.temperature, expected, atol=2e-4)


@pytest.mark.parametrize(("n", "d"), [(200, 12), (60, 200)], ids=["tall", "wide"])
def test_ridge_fitted_on_all_rows(n: int, d: int) -> None:
    features, label_ids = some_rows(n, d, 3)
    solver = heads_on(features, label_ids, 3)
    config = HeadConfig(kind="ridge", penalty=30.0)
    head = solver.fit(config, np.arange(n), temperature=0.25)
    design = standardised(features)
    peer = Ridge(alpha=30.0).fit(design, np.eye(3)[label_ids])
    np.testing.assert_allclose(head.logits(features), peer.predict(design) / 0.25, atol=1e-3)


def test_ridge_is_calibrated_out_of_fold() -> None:
    """Its logits are as good as they get: no other temperature has a lower log loss."""
    features, label_ids = some_rows(400, 20, 4)
    (answers,) = heads_on(features, label_ids, 4).out_of_fold(
        HeadConfig(kind="ridge", penalty=100.0), groups := some_folds(label_ids)
    )
    rows = np.concatenate([group.validation for group in groups])
    logits = np.concatenate(answers.logits)

    def loss(temperature: float) -> float:
        values = np.exp(logits / temperature)
        return float(log_loss(label_ids[rows], values / values.sum(1, keepdims=True)))

    assert loss(1.0) < min(loss(0.9), loss(1.1))


def test_views_are_rows_that_are_held_out_together() -> None:
    features, label_ids = some_rows(50, 6, 2)
    views = np.stack([features, features + 0.1], axis=1)
    blocks = {"last": slice(0, 6)}
    for kind in ("ridge", "logistic_regression"):
        config = HeadConfig.model_validate({"kind": kind})
        head = LinearHeads(views, label_ids, 2, blocks).fit(config, np.arange(50))
        flat = LinearHeads(views.reshape(100, 1, 6), np.repeat(label_ids, 2), 2, blocks)
        both = flat.fit(config, np.arange(100))
        np.testing.assert_array_equal(head.layers[0].kernel, both.layers[0].kernel)
    (answers,) = LinearHeads(views, label_ids, 2, blocks).out_of_fold(
        HeadConfig(kind="ridge"), groups := some_folds(label_ids)
    )
    assert [len(one) for one in answers.logits] == [2 * len(g.validation) for g in groups]


def test_layers_are_named_or_stand_for_some() -> None:
    available = ("head", "stage6", "stage5")
    assert chosen_layers("all", available) == available
    assert chosen_layers("last", available) == ("head",)
    assert chosen_layers("stage5+head", available) == ("head", "stage5")
    with pytest.raises(SearchError, match=r"got head\+stem: stem is none of head, stage6, stage5"):
        chosen_layers("head+stem", available)
