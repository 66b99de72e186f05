"""Training given heads: the best epoch's weights, several seeds, and the errors."""

from typing import Literal

import numpy as np
import pytest

from headstart.common.errors import TrainingError
from headstart.features.feature_store import FeatureBatch
from headstart.heads import lanes
from headstart.heads.config import HeadConfig
from headstart.heads.fit import FitOptions, fit_head, fit_heads
from headstart.heads.fitted import FittedHead
from headstart.heads.metrics import scores
from headstart.heads.randomness import row_order
from headstart.training.out_of_fold import OutOfFold, out_of_fold

CLASSES = 3


def _batch(n: int, seed: int, n_views: int = 1) -> FeatureBatch:
    chance = np.random.default_rng(seed)
    label_ids = np.arange(n) % CLASSES
    centres = np.random.default_rng(0).standard_normal((CLASSES, 12))
    features = centres[label_ids][:, None] + 1.5 * chance.standard_normal((n, n_views, 12))
    names = [f"{seed}-{index}" for index in range(n)]
    return FeatureBatch(features.astype(np.float32), label_ids, names, names, names)


TRAIN, VALIDATION = _batch(90, 1), _batch(60, 2)
OVERFITS = HeadConfig(width=32, learning_rate=0.02, schedule="constant", dropout=0.0)


def test_ends_with_the_weights_of_the_best_epoch() -> None:
    head = fit_head(
        OVERFITS, TRAIN, VALIDATION, n_classes=CLASSES, seed=0, options=FitOptions(patience=5)
    )
    curve = head.curve["log_loss"]
    assert len(curve) == head.epochs + 5 < OVERFITS.epochs
    assert curve[head.epochs - 1] == min(curve)
    found = scores(VALIDATION.label_ids, head.probabilities(VALIDATION.features[:, 0]))
    assert found["log_loss"] == pytest.approx(min(curve), abs=1e-5)
    assert found["accuracy"] == pytest.approx(head.curve["accuracy"][head.epochs - 1])


def test_so_many_epochs_are_the_same_head() -> None:
    stopped = fit_head(
        OVERFITS, TRAIN, VALIDATION, n_classes=CLASSES, seed=0, options=FitOptions(patience=5)
    )
    options = FitOptions(epochs=stopped.epochs)
    again = fit_head(OVERFITS, TRAIN, None, n_classes=CLASSES, seed=0, options=options)
    assert again.curve == {}
    for first, second in zip(stopped.layers, again.layers, strict=True):
        np.testing.assert_allclose(first.kernel, second.kernel, atol=1e-5)


def test_seeds_and_configs_in_one_stack_are_each_its_own() -> None:
    configs = [HeadConfig(hidden_layers=0, epochs=4), HeadConfig(width=8, epochs=3)]
    options = FitOptions(metric="accuracy")
    together = fit_heads(
        configs, TRAIN, VALIDATION, n_classes=CLASSES, seeds=[5, 6], options=options
    )
    assert [head.config for head in together] == [configs[0], configs[0], configs[1], configs[1]]
    for index, (config, seed) in enumerate((c, s) for c in configs for s in (5, 6)):
        alone = fit_head(config, TRAIN, VALIDATION, n_classes=CLASSES, seed=seed, options=options)
        np.testing.assert_allclose(
            together[index].layers[0].kernel, alone.layers[0].kernel, atol=1e-5
        )
        assert together[index].epochs == alone.epochs
    assert not np.allclose(together[0].layers[0].kernel, together[1].layers[0].kernel)


def test_each_seed_begins_with_weights_of_its_own() -> None:
    # One step that is too small to be seen, over all rows at once: the first weights are left.
    still = HeadConfig(width=8, epochs=1, learning_rate=1e-12, schedule="constant")
    options = FitOptions(batch_size=len(TRAIN), epochs=1)
    first, second, again = (
        fit_head(still, TRAIN, None, n_classes=CLASSES, seed=seed, options=options).layers[0].kernel
        for seed in (5, 6, 5)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - second).mean() > 0.05


def test_each_seed_and_each_epoch_has_an_order_of_rows_of_its_own() -> None:
    rows = np.arange(10, 60)
    orders = [row_order(seed, epoch, rows, 1) for seed in (5, 6) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), rows)


def test_groups_that_memory_parts_come_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    config = HeadConfig(width=8, epochs=4)

    def found() -> tuple[list[FittedHead], OutOfFold]:
        heads = fit_heads([config], TRAIN, VALIDATION, n_classes=CLASSES, seeds=[0, 1, 2])
        unseen = out_of_fold(
            config,
            TRAIN,
            n_classes=CLASSES,
            seeds=[0, 1],
            folds=3,
            epochs=3,
            batch_size=32,
            metric="accuracy",
        )
        return heads, unseen

    at_once = found()
    monkeypatch.setattr(lanes, "MOST_TRAINING_BYTES", 1)
    apart = found()
    for one, other in zip(at_once[0], apart[0], strict=True):
        np.testing.assert_allclose(one.layers[0].kernel, other.layers[0].kernel, atol=1e-5)
        np.testing.assert_allclose(one.curve["log_loss"], other.curve["log_loss"], rtol=1e-4)
    np.testing.assert_allclose(at_once[1].logits, apart[1].logits, atol=1e-4)
    for name, values in at_once[1].curve.items():
        np.testing.assert_allclose(values, apart[1].curve[name], rtol=1e-4)


def test_a_solved_head_has_one_epoch() -> None:
    head = fit_head(
        HeadConfig(kind="logistic_regression"), TRAIN, VALIDATION, n_classes=CLASSES, seed=0
    )
    assert head.epochs == 1
    assert [len(values) for values in head.curve.values()] == [1, 1]


def test_views_are_drawn_and_the_plain_one_is_scored() -> None:
    train = _batch(60, 1, n_views=3)
    head = fit_head(
        HeadConfig(hidden_layers=0, epochs=3, normalisation="standardise"),
        train,
        _batch(30, 2, n_views=3),
        n_classes=CLASSES,
        seed=0,
    )
    rows = train.features.reshape(-1, 12)
    assert head.mean is not None
    np.testing.assert_allclose(head.mean, rows.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("kind", ["network", "logistic_regression"])
@pytest.mark.parametrize("judged_on", ["plain", "mean_of_views"])
def test_a_head_is_judged_on_the_plain_view_or_on_the_mean_over_views(
    kind: Literal["network", "logistic_regression"], judged_on: Literal["plain", "mean_of_views"]
) -> None:
    validation = _batch(30, 2, n_views=3)
    head = fit_head(
        HeadConfig(kind=kind, width=8),
        _batch(60, 1, n_views=3),
        validation,
        n_classes=CLASSES,
        seed=0,
        options=FitOptions(epochs=4, judged_on=judged_on),
    )
    of_views = [head.probabilities(validation.features[:, view]) for view in range(3)]
    seen = of_views[0] if judged_on == "plain" else np.mean(of_views, axis=0)
    assert head.curve["log_loss"][-1] == pytest.approx(
        scores(validation.label_ids, seen)["log_loss"], rel=1e-4
    )


def test_a_loss_that_is_no_number_is_an_error() -> None:
    wild = HeadConfig(width=8, optimizer="sgd", learning_rate=100.0, schedule="constant")
    with pytest.raises(TrainingError, match="lower learning_rate"):
        fit_head(
            wild.model_copy(update={"normalisation": "none"}),
            _scaled(TRAIN, 1e15),
            _scaled(VALIDATION, 1e15),
            n_classes=CLASSES,
            seed=0,
        )


def test_weights_that_are_no_numbers_are_an_error_without_validation_rows_too() -> None:
    wild = HeadConfig(
        width=8, optimizer="sgd", learning_rate=100.0, schedule="constant", normalisation="none"
    )
    huge = _scaled(TRAIN, 1e15)
    with pytest.raises(TrainingError, match="weights must stay numbers"):
        fit_head(wild, huge, None, n_classes=CLASSES, seed=0, options=FitOptions(epochs=3))
    with pytest.raises(TrainingError, match="trained on folds"):
        out_of_fold(
            wild,
            huge,
            n_classes=CLASSES,
            seeds=[0],
            folds=3,
            epochs=3,
            batch_size=32,
            metric="log_loss",
        )


def _scaled(batch: FeatureBatch, factor: float) -> FeatureBatch:
    features = batch.features * np.float32(factor)
    return FeatureBatch(features, batch.label_ids, batch.sha256, batch.paths, batch.groups)


def test_nothing_says_when_to_end() -> None:
    with pytest.raises(TrainingError, match="needs a number of epochs"):
        fit_head(OVERFITS, TRAIN, None, n_classes=CLASSES, seed=0)
