"""ROC, precision-recall, reliability and coverage."""

import numpy as np
import pytest
from sklearn import metrics as reference

from headstart.evaluation.curves import coverage, precision_recall_curves, reliability, roc_curves
from tests.evaluation.conftest import CLASSES, draw_predictions


def test_curves_have_the_areas_of_scikit_learn() -> None:
    labels, probabilities = draw_predictions(1000)
    for index, curve in enumerate(roc_curves(labels, probabilities, CLASSES)):
        expected = reference.roc_auc_score(labels == index, probabilities[:, index])
        assert curve.area == pytest.approx(expected, abs=1e-12)
        assert (curve.x[0], curve.y[0], curve.x[-1], curve.y[-1]) == (0, 0, 1, 1)
        assert len(curve.x) <= 200
    for index, curve in enumerate(precision_recall_curves(labels, probabilities, CLASSES)):
        expected = reference.average_precision_score(labels == index, probabilities[:, index])
        assert curve.area == pytest.approx(expected, abs=1e-12)
        assert (curve.x[0], curve.y[0], curve.x[-1]) == (0, 1, 1)


def test_a_class_without_images_has_no_curve() -> None:
    labels, probabilities = draw_predictions()
    labels[labels == 1] = 0
    assert [c.name for c in roc_curves(labels, probabilities, CLASSES)] == ["a", "c", "d"]
    assert [c.name for c in precision_recall_curves(labels, probabilities, CLASSES)] == [*"acd"]


def test_reliability_bins_add_up_to_confidence_and_accuracy() -> None:
    labels, probabilities = draw_predictions()
    bins = reliability(labels, probabilities)
    assert bins.count.sum() == 300
    confidence, accuracy = (
        np.nan_to_num(values) @ bins.count / 300 for values in (bins.confidence, bins.accuracy)
    )
    assert confidence == pytest.approx(probabilities.max(axis=1).mean())
    assert accuracy == pytest.approx((probabilities.argmax(axis=1) == labels).mean())


def test_coverage_ends_at_the_accuracy_and_answers_the_surest_first() -> None:
    labels, probabilities = draw_predictions()
    found = coverage(labels, probabilities)
    assert found.coverage[-1] == 1
    assert found.accuracy[-1] == (probabilities.argmax(axis=1) == labels).mean()
    assert (np.diff(found.threshold) <= 0).all()
    half = probabilities.max(axis=1) >= found.threshold[149]
    right = (probabilities.argmax(axis=1) == labels)[half]
    assert found.accuracy[149] == pytest.approx(right.mean())
