"""Curves, mistakes, slices, map and heat: what the evaluation page is made of."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as reference
from sklearn.decomposition import PCA

from headstart.common.errors import TrainingError
from headstart.common.paths import Project
from headstart.dataset.manifest import Manifest, read_manifest
from headstart.evaluation.curves import coverage, precision_recall_curves, reliability, roc_curves
from headstart.evaluation.embedding import principal_plane
from headstart.evaluation.evaluate_model import score_intervals
from headstart.evaluation.gradcam import GradCam, overlay
from headstart.evaluation.mistakes import confused_pairs, likely_label_errors, worst_errors
from headstart.evaluation.slices import sliced
from headstart.heads.fitted import FittedHead
from headstart.heads.metrics import ece, scores, softmax
from headstart.models.assemble import assemble
from headstart.models.predictions import Predictions

CLASSES = ("a", "b", "c", "d")
Floats = NDArray[np.float64]
Ids = NDArray[np.int64]


def _draw(n: int = 300, seed: int = 0) -> tuple[Ids, Floats]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 4, n)
    logits = generator.normal(size=(n, 4)) + 2.0 * np.eye(4)[labels]
    return labels, softmax(logits)


def test_metrics_agree_with_scikit_learn() -> None:
    labels, probabilities = _draw()
    predicted = probabilities.argmax(axis=1)
    expected = {
        "accuracy": reference.accuracy_score(labels, predicted),
        "balanced_accuracy": reference.balanced_accuracy_score(labels, predicted),
        "macro_f1": reference.f1_score(labels, predicted, average="macro"),
        "top_3_accuracy": reference.top_k_accuracy_score(labels, probabilities, k=3),
        "log_loss": reference.log_loss(labels, probabilities),
        "brier": np.square(probabilities - np.eye(4)[labels]).sum(axis=1).mean(),
    }
    found = scores(labels, probabilities)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name


def test_curves_have_the_areas_of_scikit_learn() -> None:
    labels, probabilities = _draw(1000)
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
    labels, probabilities = _draw()
    labels[labels == 1] = 0
    assert [c.name for c in roc_curves(labels, probabilities, CLASSES)] == ["a", "c", "d"]
    assert [c.name for c in precision_recall_curves(labels, probabilities, CLASSES)] == [*"acd"]


def test_reliability_bins_add_up_to_confidence_and_accuracy() -> None:
    labels, probabilities = _draw()
    bins = reliability(labels, probabilities)
    assert bins.count.sum() == 300
    confidence, accuracy = (
        np.nan_to_num(values) @ bins.count / 300 for values in (bins.confidence, bins.accuracy)
    )
    assert confidence == pytest.approx(probabilities.max(axis=1).mean())
    assert accuracy == pytest.approx((probabilities.argmax(axis=1) == labels).mean())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(2, 5), st.floats(0.1, 8), st.integers(0, 10_000))
def test_the_calibration_error_lies_in_its_interval(
    n: int, n_classes: int, sharpness: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, n_classes, n)
    probabilities = softmax(sharpness * generator.normal(size=(n, n_classes)))
    groups = [str(group) for group in generator.integers(0, max(1, n // 2), n)]
    found = score_intervals(labels, probabilities, groups, n_resamples=40, seed=seed)["ece"]
    assert 0 <= found.low <= float(ece(labels, probabilities)) <= found.high


@pytest.mark.parametrize("exponent", [1.0, 2.0], ids=["calibrated", "overconfident"])
def test_the_calibration_errors_interval_covers_it(exponent: float) -> None:
    """Of 40 samples of 200 images; the true value is that of a large one."""

    def draw(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        generator = np.random.default_rng(seed)
        true = generator.uniform(0.5, 1.0, n)
        odds = (true / (1 - true)) ** exponent
        stated = odds / (1 + odds)
        right = generator.random(n) < true
        first = np.where(right, stated, 1 - stated)
        return np.stack([first, 1 - first], axis=1), stated, true

    _, stated, true = draw(100_000, 0)
    error = float(np.sqrt(np.square(stated - true).mean()))
    groups = [str(image) for image in range(200)]
    inside = 0
    for seed in range(1, 41):
        probabilities, _, _ = draw(200, seed)
        labels = np.zeros(200, np.int64)
        found = score_intervals(labels, probabilities, groups, n_resamples=100, seed=seed)["ece"]
        inside += found.low <= error <= found.high
    assert inside >= 36


def test_coverage_ends_at_the_accuracy_and_answers_the_surest_first() -> None:
    labels, probabilities = _draw()
    found = coverage(labels, probabilities)
    assert found.coverage[-1] == 1
    assert found.accuracy[-1] == (probabilities.argmax(axis=1) == labels).mean()
    assert (np.diff(found.threshold) <= 0).all()
    half = probabilities.max(axis=1) >= found.threshold[149]
    right = (probabilities.argmax(axis=1) == labels)[half]
    assert found.accuracy[149] == pytest.approx(right.mean())


def test_worst_errors_give_the_truth_least() -> None:
    labels, probabilities = _draw()
    rows = worst_errors(labels, probabilities, 10)
    assert len(rows) == 10
    assert (probabilities[rows].argmax(axis=1) != labels[rows]).all()
    assert (np.diff(probabilities[rows, labels[rows]]) >= 0).all()


def test_confused_pairs_are_those_of_the_confusion_matrix() -> None:
    labels, probabilities = _draw()
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
    labels, probabilities = _draw()
    found = likely_label_errors(labels, probabilities)
    assert (probabilities[found].argmax(axis=1) != labels[found]).all()


@pytest.mark.parametrize("n", [80, 16])
def test_the_map_is_that_of_scikit_learn(n: int) -> None:
    generator = np.random.default_rng(0)
    scale = np.array([5, 3, *[1] * (4 if n > 50 else 30)])
    rows = (generator.normal(size=(n, len(scale))) * scale).astype(np.float32)
    places, explained = principal_plane(rows, rows[:10], seed=0)
    expected = PCA(2).fit(rows)
    assert np.abs(places) == pytest.approx(np.abs(expected.transform(rows[:10])), abs=1e-4)
    assert explained == pytest.approx(expected.explained_variance_ratio_, abs=1e-6)


def test_slices_part_the_images_by_flags_and_by_size(workspace: Project) -> None:
    manifest = read_manifest(workspace.manifest)
    table = manifest.table.assign(width=np.linspace(100, 400, len(manifest)).astype(int))
    test = Manifest(table, manifest.classes).select("test")
    labels, probabilities = _draw(len(test))
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


def test_heat_of_a_linear_head_is_its_weighted_map(
    encoder: Any, head: Callable[..., FittedHead], pixels: NDArray[np.uint8]
) -> None:
    """With average pooling and a linear head Grad-CAM is CAM: the class's kernel on the map."""
    import keras

    fitted = head(hidden_layers=0, normalisation="none")
    model = assemble(encoder, [fitted], 2.0)
    class_ids = np.arange(len(pixels)) % 3
    heat = GradCam(model).heat(pixels, class_ids)
    maps = np.asarray(
        keras.Model(model.input, model.get_layer("features").input)(pixels), np.float32
    )
    kernels = fitted.layers[0].kernel.T[class_ids]
    coarse = np.maximum(np.einsum("nhwc,nc->nhw", maps, kernels), 0)
    assert heat.shape == (20, 16, 16)
    assert heat.min() >= 0
    assert heat.max() <= 1
    peaks = coarse.reshape(20, -1).argmax(axis=1)
    step = 16 / maps.shape[1]
    for one, peak in zip(heat, peaks, strict=True):
        row, column = np.unravel_index(peak, maps.shape[1:3])
        assert one[int((row + 0.5) * step), int((column + 0.5) * step)] > 0.6


def test_heat_needs_a_map(head: Callable[..., FittedHead]) -> None:
    import keras

    vector = keras.Input((12,), name="image")
    features = keras.layers.Flatten(name="features")(vector)
    model = assemble(keras.Model(vector, features), [head()], 1.0)
    with pytest.raises(TrainingError, match=r"vectors of shape \(12,\): choose a convolutional"):
        GradCam(model)


def test_heat_is_laid_over_a_picture() -> None:
    grey = np.full((8, 8, 3), 120, np.uint8)
    hot = np.zeros((8, 8), np.float32)
    hot[0, 0] = 1
    shown = overlay(grey, hot)
    assert (shown[4, 4] == 120).all()
    assert (shown[0, 0] != 120).any()
