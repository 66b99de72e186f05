"""Worst errors, confused pairs, label issues, the map of features and slices."""

import numpy as np
import pytest
from sklearn import metrics as reference
from sklearn.decomposition import PCA

from headstart.common.paths import Project
from headstart.dataset.manifest import Manifest, read_manifest
from headstart.evaluation.error_analysis import (
    confused_pairs,
    likely_label_errors,
    principal_plane,
    sliced,
    worst_errors,
)
from headstart.heads.metrics import softmax
from headstart.models.predictions import Predictions
from tests.evaluation.conftest import CLASSES, draw_predictions


def test_worst_errors_give_the_truth_least() -> None:
    labels, probabilities = draw_predictions()
    rows = worst_errors(labels, probabilities, 10)
    assert len(rows) == 10
    assert (probabilities[rows].argmax(axis=1) != labels[rows]).all()
    assert (np.diff(probabilities[rows, labels[rows]]) >= 0).all()


def test_confused_pairs_are_those_of_the_confusion_matrix() -> None:
    labels, probabilities = draw_predictions()
    confusion = reference.confusion_matrix(labels, probabilities.argmax(axis=1), labels=range(4))
    np.fill_diagonal(confusion, 0)
    pairs = confused_pairs(labels, probabilities, 3)
    assert [pair.count for pair in pairs] == sorted(confusion.ravel())[::-1][:3]
    for pair in pairs:
        assert confusion[pair.true_id, pair.predicted_id] == pair.count
        assert (labels[pair.rows] == pair.true_id).all()


def test_planted_label_errors_are_found_and_honest_labels_left_alone() -> None:
    generator = np.random.default_rng(1)
    truth = generator.integers(0, 4, 400)
    probabilities = softmax(generator.normal(size=(400, 4)) + 5.0 * np.eye(4)[truth])
    given = truth.copy()
    planted = generator.permutation(400)[:20]
    given[planted] = (given[planted] + 1) % 4
    found = likely_label_errors(given, probabilities)
    assert len(set(found) & set(planted)) >= 16
    assert len(set(found) - set(planted)) <= 4
    margin = probabilities[found, given[found]] - probabilities[found].max(axis=1)
    assert (np.diff(margin) >= -1e-12).all()


def test_a_label_the_model_itself_predicts_is_never_suspicious() -> None:
    labels, probabilities = draw_predictions()
    found = likely_label_errors(labels, probabilities)
    assert (probabilities[found].argmax(axis=1) != labels[found]).all()


@pytest.mark.parametrize("n", [80, 16])
def test_the_map_is_that_of_scikit_learn(n: int) -> None:
    generator = np.random.default_rng(0)
    scale = np.array([5, 3, *[1] * (4 if n > 50 else 30)])
    rows = (generator.normal(size=(n, len(scale))) * scale).astype(np.float32)
    points, explained = principal_plane(rows, rows[:10], seed=0)
    expected = PCA(2).fit(rows)
    assert np.abs(points) == pytest.approx(np.abs(expected.transform(rows[:10])), abs=1e-4)
    assert explained == pytest.approx(expected.explained_variance_ratio_, abs=1e-6)


def test_slices_part_the_images_by_flags_and_by_size(workspace: Project) -> None:
    manifest = read_manifest(workspace.manifest)
    table = manifest.table.assign(width=np.linspace(100, 400, len(manifest)).astype(int))
    test = Manifest(table, manifest.classes).select("test")
    labels, probabilities = draw_predictions(len(test))
    predictions = Predictions(
        CLASSES, "test", tuple(test.paths), tuple(test.sha256), labels, probabilities
    )
    found = sliced(predictions, Manifest(table, manifest.classes), n_resamples=100, seed=0)
    sizes = [part for part in found if part.kind == "image size"]
    blurred = [part for part in found if part.kind == "issue blurry"]
    assert sum(part.n_images for part in sizes) == len(test) == 60
    assert [part.name for part in blurred] == ["yes", "no"]
    for part in found:
        assert part.interval.low <= part.accuracy <= part.interval.high
        assert part.n_images >= 10
