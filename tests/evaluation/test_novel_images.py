"""Classes left out in turn: what novelty makes of images that a model does not know."""

import numpy as np
import pytest

from headstart.evaluation.novel_images import evaluate_novelty
from headstart.models.novelty import fit_novelty


def test_each_class_is_left_out_in_turn() -> None:
    """Two classes that look alike hide each other; a third stands apart."""
    chance = np.random.default_rng(0)
    centres = np.zeros((4, 16))
    centres[2, :4], centres[3, 8:12] = 12, 12
    labels = np.arange(800) % 4
    labels[labels == 3] = 2 + (np.arange(200) % 8 == 0)  # few of the last
    features = (centres[labels] + chance.standard_normal((800, 16)) + 5).astype(np.float32)
    reference = fit_novelty(
        features[:500], labels[:500], [str(i) for i in range(500)],
        features.mean(axis=0), features.var(axis=0), seed=0,
    )  # fmt: skip
    assert reference is not None
    probabilities = np.eye(5)[labels[500:]]  # a fifth class has no image
    probabilities[:30] = 1 / 5
    found = evaluate_novelty(reference, features[500:], labels[500:], probabilities)
    by_label = {one.label_id: one for one in found.left_out}
    assert set(by_label) == {0, 1, 2, 3}
    assert by_label[2].auroc > 0.95
    assert by_label[2].caught > 0.9
    assert by_label[0].auroc < 0.85
    assert [one.auroc for one in found.left_out] == sorted(one.auroc for one in found.left_out)
    first, *others = found.answered
    assert (first.max_novelty, first.share) == (1.0, 1.0)
    assert first.accuracy == pytest.approx((probabilities.argmax(axis=1) == labels[500:]).mean())
    assert all(0.6 < one.share < 1 for one in others)
    metrics = found.metrics()
    assert metrics["novelty_auroc_worst"] == found.left_out[0].auroc
    assert metrics["novelty_auroc"] == pytest.approx(np.mean([o.auroc for o in found.left_out]))


def test_one_class_cannot_be_left_out() -> None:
    features = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    labels = np.zeros(40, np.int64)
    reference = fit_novelty(
        features[:30], labels[:30], [str(i) for i in range(30)],
        features.mean(axis=0), features.var(axis=0), seed=0,
    )  # fmt: skip
    assert reference is not None
    found = evaluate_novelty(reference, features[30:], labels[30:], np.ones((10, 1)))
    assert found.left_out == ()
    assert found.metrics() == {}
    assert len(found.novelty) == 10
