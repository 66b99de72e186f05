"""Training heads: the best epoch's weights, several seeds, subsets of blocks, and the errors."""

from typing import Literal

import numpy as np
import pytest

from headstart.common.errors import TrainingError
from headstart.heads.config import HeadConfig
from headstart.heads.curve import Curve
from headstart.heads.folds import Fold, folds_of
from headstart.heads.metrics import scores
from headstart.heads.network import row_order
from headstart.heads.trainer import CrossValidation, HeadTrainer, mean_by_row

CLASSES, DIM, N_TRAIN = 3, 12, 90
N = N_TRAIN + 60
BLOCKS = {"last": slice(0, 8), "inner": slice(8, 12)}


def _features(n_views: int = 1) -> np.ndarray:
    label_ids = np.arange(N) % CLASSES
    centres = np.random.default_rng(0).standard_normal((CLASSES, DIM))
    noise = np.random.default_rng(1).standard_normal((N, n_views, DIM))
    return (centres[label_ids][:, None] + 1.5 * noise).astype(np.float32)


LABELS = (np.arange(N) % CLASSES).astype(np.int64)
SPLIT = Fold(np.arange(N_TRAIN), np.arange(N_TRAIN, N), 0)
OVERFITS = HeadConfig(width=32, learning_rate=0.02, schedule="constant", dropout=0.0)


def _trainer(n_views: int = 1, scale: float = 1.0, **options: object) -> HeadTrainer:
    features = _features(n_views) * np.float32(scale)
    return HeadTrainer(features, LABELS, CLASSES, BLOCKS, **options)  # type: ignore[arg-type]


def _on_split(config: HeadConfig, **options: object) -> CrossValidation:
    return _trainer().cross_validate(config, [SPLIT], keep_heads=True, **options)  # type: ignore[arg-type]


def test_ends_with_the_weights_of_the_best_epoch() -> None:
    found = _on_split(OVERFITS, patience=5)
    (head,), curve = found.heads, found.curve.values["log_loss"]
    assert len(curve) == head.epochs + 5 < OVERFITS.epochs
    assert curve[head.epochs - 1] == min(curve) == found.curve.best
    seen = head.probabilities(_features()[N_TRAIN:, 0])
    again = scores(LABELS[N_TRAIN:], seen)
    assert again["log_loss"] == pytest.approx(min(curve), abs=1e-5)
    np.testing.assert_allclose(head.logits(_features()[N_TRAIN:, 0]), found.logits[0], atol=1e-4)


def test_so_many_epochs_are_the_same_head() -> None:
    (stopped,) = _on_split(OVERFITS, patience=5).heads
    (again,) = _trainer().fit(OVERFITS, SPLIT.train, [0], epochs=stopped.epochs)
    assert again.curve == {}
    for first, second in zip(stopped.layers, again.layers, strict=True):
        np.testing.assert_allclose(first.kernel, second.kernel, atol=1e-5)


def test_the_number_of_epochs_may_be_given() -> None:
    found = _on_split(OVERFITS, epochs=4)
    assert found.curve.epochs == found.heads[0].epochs == 4
    seen = found.heads[0].logits(_features()[N_TRAIN:, 0])
    np.testing.assert_allclose(seen, found.logits[0], atol=1e-4)


def test_folds_are_each_trained_without_their_rows_and_stop_together() -> None:
    fold_of_row = np.arange(N) % 5
    folds = folds_of(fold_of_row, [3, 4])
    config = HeadConfig(hidden_layers=0, epochs=4)
    found = _trainer(metric="accuracy").cross_validate(config, folds, keep_heads=True)
    assert len(found.heads) == len(found.logits) == 10
    assert {head.epochs for head in found.heads} == {found.curve.best_epoch}
    for fold, head, logits in zip(folds, found.heads, found.logits, strict=True):
        assert not set(fold.train) & set(fold.validation)
        (alone,) = _trainer().fit(config, fold.train, [fold.seed], epochs=found.curve.best_epoch)
        if found.curve.best_epoch == config.epochs:
            np.testing.assert_allclose(head.layers[0].kernel, alone.layers[0].kernel, atol=1e-5)
        np.testing.assert_allclose(head.logits(_features()[fold.validation, 0]), logits, atol=1e-4)
    rows, mean = mean_by_row(folds, found.logits)
    np.testing.assert_array_equal(rows, np.arange(N))
    np.testing.assert_allclose(mean[0], (found.logits[0][0] + found.logits[1][0]) / 2, atol=1e-6)


@pytest.mark.parametrize("kind", ["network", "logistic_regression", "ridge"])
@pytest.mark.parametrize("layers", ["last", "inner", "all"])
def test_a_head_sees_its_own_blocks_alone(
    kind: Literal["network", "logistic_regression", "ridge"], layers: str
) -> None:
    config = HeadConfig(kind=kind, layers=layers, width=8, epochs=2)
    (head,) = _trainer().cross_validate(config, [SPLIT], keep_heads=True).heads
    columns = {"last": slice(0, 8), "inner": slice(8, 12), "all": slice(0, 12)}[layers]
    width = columns.stop - columns.start
    assert head.layers[0].kernel.shape[0] == width
    others = np.full((N, 1, DIM), np.nan, np.float32)
    others[:, :, columns] = _features()[:, :, columns]
    if kind == "network":
        blind = HeadTrainer(others, LABELS, CLASSES, BLOCKS)
        (same,) = blind.cross_validate(config, [SPLIT], keep_heads=True).heads
        np.testing.assert_array_equal(same.layers[0].kernel, head.layers[0].kernel)


def test_training_ends_when_it_is_told_to() -> None:
    seen: list[int] = []

    def on_epoch(curve: Curve) -> bool:
        seen.append(curve.epochs)
        return curve.epochs == 2

    found = _on_split(OVERFITS, on_epoch=on_epoch)
    assert seen == [1, 2]
    assert found.curve.epochs == 2


def test_each_seed_begins_with_weights_of_its_own() -> None:
    # One step that is too small to be seen, over all rows at once: the first weights are left.
    still = HeadConfig(width=8, epochs=1, learning_rate=1e-12, schedule="constant")
    trainer = _trainer(batch_size=N)
    heads = trainer.fit(still, np.arange(N), [5, 6, 5], epochs=1)
    first, second, again = (head.layers[0].kernel for head in heads)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - second).mean() > 0.05


def test_each_seed_and_each_epoch_has_an_order_of_rows_of_its_own() -> None:
    rows = np.arange(10, 60)
    orders = [row_order(seed, epoch, rows, 1) for seed in (5, 6) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), rows)


def test_a_solved_head_has_one_epoch() -> None:
    found = _on_split(HeadConfig(kind="logistic_regression"))
    assert found.heads[0].epochs == 1
    assert [len(values) for values in found.curve.values.values()] == [1, 1]


def test_views_are_drawn_and_standardised_together() -> None:
    config = HeadConfig(hidden_layers=0, epochs=3, normalisation="standardise")
    (head,) = _trainer(n_views=3).cross_validate(config, [SPLIT], keep_heads=True).heads
    rows = _features(3)[:N_TRAIN].reshape(-1, DIM)
    assert head.mean is not None
    np.testing.assert_allclose(head.mean, rows.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("kind", ["network", "logistic_regression", "ridge"])
@pytest.mark.parametrize("validation_views", ["plain", "mean_of_views"])
def test_a_head_is_validation_views_the_plain_view_or_on_the_mean_over_views(
    kind: Literal["network", "logistic_regression", "ridge"],
    validation_views: Literal["plain", "mean_of_views"],
) -> None:
    trainer = _trainer(n_views=3, validation_views=validation_views)
    config = HeadConfig(kind=kind, width=8)
    found = trainer.cross_validate(config, [SPLIT], epochs=4, keep_heads=True)
    of_views = [found.heads[0].probabilities(_features(3)[N_TRAIN:, view]) for view in range(3)]
    seen = of_views[0] if validation_views == "plain" else np.mean(of_views, axis=0)
    assert found.curve.values["log_loss"][-1] == pytest.approx(
        # folds of ridge are standardised by the statistics of all rows
        scores(LABELS[N_TRAIN:], seen)["log_loss"],
        rel=0.05 if kind == "ridge" else 1e-4,
    )


WILD = HeadConfig(
    width=8, optimizer="sgd", learning_rate=100.0, schedule="constant", normalisation="none"
)


def test_a_loss_that_is_no_number_is_an_error() -> None:
    with pytest.raises(TrainingError, match="lower learning_rate"):
        _trainer(scale=1e15).cross_validate(WILD, [SPLIT])


def test_weights_that_are_no_numbers_are_an_error_without_validation_rows_too() -> None:
    with pytest.raises(TrainingError, match="weights must stay numbers"):
        _trainer(scale=1e15).fit(WILD, np.arange(N), [0], epochs=3)
