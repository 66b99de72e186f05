"""Which epoch is the best one, and when a head has stalled."""

import numpy as np
import pytest

from headstart.heads.curve import Curve


def curve_of(accuracies: list[list[float]], log_losses: list[float] | None = None) -> Curve:
    """A curve of accuracies (n_epochs, n_groups)."""
    curve = Curve("accuracy")
    for epoch, groups in enumerate(accuracies):
        values = {"accuracy": np.array(groups)}
        if log_losses is not None:
            values["log_loss"] = np.full(len(groups), log_losses[epoch])
        curve.add(values)
    return curve


def test_nothing_is_best_before_the_first_epoch() -> None:
    curve = Curve("accuracy")
    assert (curve.epochs, curve.best_epoch, np.isnan(curve.best)) == (0, 0, True)
    assert not curve.stalled(1)


def test_the_first_of_epochs_that_are_equal_in_all_is_best() -> None:
    curve = curve_of([[0.5], [0.8], [0.8], [0.7]], [0.9, 0.4, 0.4, 0.5])
    assert (curve.best_epoch, curve.best, curve.epochs) == (2, 0.8, 4)


def test_of_equal_epochs_the_one_with_less_log_loss_is_best_but_is_no_progress() -> None:
    curve = curve_of([[0.8], [0.8], [0.8]], [0.6, 0.4, 0.5])
    assert (curve.best_epoch, curve.best) == (2, 0.8)
    assert curve.stalled(2)
    assert not curve.stalled(3)


def test_a_lower_log_loss_does_not_outweigh_the_metric() -> None:
    assert curve_of([[0.8], [0.7]], [0.6, 0.1]).best_epoch == 1


def test_a_lower_metric_is_better_where_less_is() -> None:
    curve = Curve("log_loss")
    assert curve.add({"log_loss": np.array([0.5, 0.7]), "accuracy": np.array([0.5, 0.5])})
    assert curve.add({"log_loss": np.array([0.3, 0.5]), "accuracy": np.array([0.4, 0.4])})
    assert not curve.stalled(1)
    assert curve.best_epoch == 2
    assert curve.best == pytest.approx(0.4)


def test_what_is_not_a_number_is_never_best() -> None:
    curve = curve_of([[float("nan")], [0.2], [float("nan")]])
    assert (curve.best_epoch, curve.best) == (2, 0.2)


def test_with_one_group_any_gain_is_progress() -> None:
    curve = curve_of([[0.5], [0.5001]])
    assert not curve.stalled(1)


def test_with_folds_a_gain_within_its_standard_error_is_best_but_no_progress() -> None:
    # The second epoch is better by 0.01 in the mean; the differences +0.1, -0.08 say nothing.
    curve = curve_of([[0.5, 0.5], [0.6, 0.42]])
    assert (curve.best_epoch, curve.stalled(1)) == (2, True)


def test_with_folds_small_gains_add_up_to_progress() -> None:
    # Half a row a time in each of four folds, where one row is 0.01; the noise is the same.
    noise = np.array([[0.0, 0.0, 0.0, 0.0], [0.01, -0.01, 0.01, -0.01], [0.01, -0.01, 0.01, -0.01]])
    steps = np.array([0.5, 0.503, 0.509])[:, None] + noise
    curve = curve_of(steps.tolist())
    assert not curve.stalled(1)
    assert curve_of(steps[:2].tolist()).stalled(1)


def test_the_spread_is_the_sample_standard_deviation_over_groups() -> None:
    curve = curve_of([[0.4, 0.6], [0.5, 0.5]])
    assert curve.values["accuracy"] == pytest.approx([0.5, 0.5])
    assert curve.spread == pytest.approx([np.std([0.4, 0.6], ddof=1), 0.0])
