"""The linear probe is logistic regression: scikit-learn's, also with more features than rows."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from headstart.heads.config import HeadConfig
from headstart.heads.probe import ProbeRows, row_space, solve


def _rows(n: int, d: int, n_classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(seed)
    label_ids = chance.permutation(np.arange(n) % n_classes).astype(np.int64)
    centres = chance.standard_normal((n_classes, d))
    return (centres[label_ids] * 0.5 + chance.standard_normal((n, d)) + 2).astype(
        np.float32
    ), label_ids


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize(("n", "d"), [(120, 10), (40, 90)])
@pytest.mark.parametrize("normalisation", ["none", "standardise"])
def test_equals_scikit_learn(n_classes: int, n: int, d: int, normalisation: str) -> None:
    features, label_ids = _rows(n, d, n_classes)
    config = HeadConfig.model_validate(
        {"kind": "linear_probe", "l2": 0.05, "normalisation": normalisation}
    )
    rows = ProbeRows(features[:, None], label_ids, np.ones(n, np.float32), n_classes)
    head = rows.fit(config)
    # Two classes are one logit there, whose penalty is twice as large for the same probabilities.
    strength = 1 / (config.l2 * n) * (2 if n_classes == 2 else 1)
    peer = LogisticRegression(C=strength, tol=1e-9, max_iter=5000)
    peer.fit(head.normalised(features).astype(np.float64), label_ids)
    expected = peer.predict_proba(head.normalised(features))
    np.testing.assert_allclose(head.probabilities(features), expected, atol=2e-3)


def test_row_space_is_an_exact_rotation() -> None:
    chance = np.random.default_rng(0)
    rows = chance.standard_normal((30, 400))
    rows[7] = rows[3]
    rotated, back = row_space(rows)
    basis = rows.T @ back
    assert rotated.shape == (30, 29)
    np.testing.assert_allclose(rotated @ basis.T, rows, atol=1e-9)
    np.testing.assert_allclose(basis.T @ basis, np.eye(29), atol=1e-9)


def test_solution_in_the_row_space_is_the_solution() -> None:
    chance = np.random.default_rng(1)
    label_ids = np.arange(30) % 3
    rows = chance.standard_normal((30, 400)) + np.eye(3, 400)[label_ids] * 2
    weights = np.full(30, 1 / 30)
    rotated, back = row_space(rows)
    basis = rows.T @ back
    direct = solve(rows, label_ids, weights, 3, 0.01)
    mapped = solve(rotated, label_ids, weights, 3, 0.01)
    np.testing.assert_allclose(basis @ mapped[0], direct[0], atol=1e-4)
    np.testing.assert_allclose(mapped[1], direct[1], atol=1e-3)


def test_row_weights_leave_out_and_class_weights_balance() -> None:
    features, label_ids = _rows(90, 6, 3)
    weights = np.ones(90, np.float32)
    weights[60:] = 0
    config = HeadConfig(kind="linear_probe", l2=0.01, class_weights="balanced")
    head = ProbeRows(features[:, None], label_ids, weights, 3).fit(config)
    alone = ProbeRows(features[:60, None], label_ids[:60], weights[:60], 3).fit(config)
    np.testing.assert_array_equal(head.layers[0].kernel, alone.layers[0].kernel)
    peer = LogisticRegression(C=1 / (0.01 * 60), class_weight="balanced", tol=1e-9, max_iter=5000)
    peer.fit(head.normalised(features[:60]).astype(np.float64), label_ids[:60])
    expected = peer.predict_proba(head.normalised(features))
    np.testing.assert_allclose(head.probabilities(features), expected, atol=2e-3)


def test_views_are_rows() -> None:
    features, label_ids = _rows(50, 5, 2)
    views = np.stack([features, features + 0.1], axis=1)
    config = HeadConfig(kind="linear_probe", l2=0.1)
    head = ProbeRows(views, label_ids, np.ones(50, np.float32), 2).fit(config)
    flat = views.reshape(100, 1, 5)
    both = ProbeRows(flat, np.repeat(label_ids, 2), np.ones(100, np.float32), 2).fit(config)
    np.testing.assert_array_equal(head.layers[0].kernel, both.layers[0].kernel)
