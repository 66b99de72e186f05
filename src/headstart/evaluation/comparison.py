"""Two models side by side: which is better on the same images, or is it chance; which is faster.

Sources: the paired percentile bootstrap (Efron and Tibshirani, 1993) gives the size of the
difference, McNemar's mid-p test (Fagerland, Lydersen, Laake, 2013) its surprise. A difference
counts only if both say so. Knows models, probabilities and labels, not which split they are of.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from headstart.common.errors import DataError
from headstart.evaluation.bootstrap import intervals
from headstart.models.model_file import load_model

NOT_WORSE_MARGIN = 0.01
_SIGNIFICANCE = 0.05
_TINY = 1e-15
_WARM_UP, _ROUNDS = 3, 15

Verdict = Literal["better", "worse", "undecided"]
Probabilities = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Difference:
    """Challenger minus champion, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """What the images say about a challenger beside a champion.

    Attributes:
        accuracy: difference of the fractions of right answers.
        log_loss: difference of the mean losses; below zero the challenger is better.
        p_value: McNemar's mid-p.
        verdict: better or worse only if interval and test agree, by accuracy.
        not_worse: the interval excludes a loss of more than `NOT_WORSE_MARGIN` in accuracy.
        sentence: the same in words.
    """

    n_images: int
    champion_accuracy: float
    challenger_accuracy: float
    accuracy: Difference
    log_loss: Difference
    only_champion_right: int
    only_challenger_right: int
    p_value: float
    verdict: Verdict
    not_worse: bool
    sentence: str

    def as_json(self) -> dict[str, Any]:
        """Return plain values for reports/comparison.json."""
        return asdict(self)


def compare_models(
    champion_probabilities: Probabilities,
    challenger_probabilities: Probabilities,
    label_ids: NDArray[np.int64],
    *,
    seed: int,
    groups: Sequence[str] | None = None,
    optimism: tuple[float, float] = (0.0, 0.0),
    n_resamples: int = 2000,
) -> Comparison:
    """Compare two models on the same images.

    Args:
        champion_probabilities: shape (n_images, n_classes), rows as those of the challenger.
        label_ids: shape (n_images,).
        groups: group key of each image; images of a group are drawn together.
        optimism: accuracy that champion and challenger show on these images beyond what to expect,
            for having been chosen on them among many. The difference is moved by it; McNemar's
            test, which counts the images as they are, then has no say. `bench/gate.py` measures how
            often that is wrong.

    Raises:
        DataError: the shapes differ, or there are no images.
    """
    if champion_probabilities.shape != challenger_probabilities.shape or len(
        champion_probabilities
    ) != len(label_ids):
        raise DataError(
            "two models are compared on the same images and classes, but got probabilities of "
            f"shape {champion_probabilities.shape} and {challenger_probabilities.shape} for "
            f"{len(label_ids)} labels: evaluate both on the same manifest"
        )
    if len(label_ids) == 0:
        raise DataError("a comparison needs images, but got none: give the split some")
    champion_right = champion_probabilities.argmax(axis=1) == label_ids
    challenger_right = challenger_probabilities.argmax(axis=1) == label_ids
    before, after = champion_right - optimism[0], challenger_right - optimism[1]
    is_corrected = optimism != (0.0, 0.0)
    gains = {
        "accuracy": after - before,
        "log_loss": _losses(challenger_probabilities, label_ids)
        - _losses(champion_probabilities, label_ids),
    }
    found = intervals(
        lambda rows: {name: float(gain[rows].mean()) for name, gain in gains.items()},
        [str(i) for i in range(len(label_ids))] if groups is None else groups,
        n_resamples=n_resamples,
        seed=seed,
    )
    accuracy, log_loss = (
        Difference(float(gain.mean()), found[name].low, found[name].high)
        for name, gain in gains.items()
    )
    lost = int((champion_right & ~challenger_right).sum())
    won = int((challenger_right & ~champion_right).sum())
    p_value, total = 1.0, lost + won
    if total:
        half = binom.cdf(min(lost, won), total, 0.5) - binom.pmf(min(lost, won), total, 0.5) / 2
        p_value = float(min(1.0, 2 * half))
    verdict: Verdict = "undecided"
    conclusion = "these images cannot tell the two apart"
    is_significant = is_corrected or p_value < _SIGNIFICANCE
    if is_significant and accuracy.low > 0:
        verdict, conclusion = "better", "the challenger is better"
    elif is_significant and accuracy.high < 0:
        verdict, conclusion = "worse", "the challenger is worse"
    value, low, high = (f"{100 * x:+.1f}" for x in (accuracy.value, accuracy.low, accuracy.high))
    return Comparison(
        n_images=len(label_ids),
        champion_accuracy=float(before.mean()),
        challenger_accuracy=float(after.mean()),
        accuracy=accuracy,
        log_loss=log_loss,
        only_champion_right=lost,
        only_challenger_right=won,
        p_value=p_value,
        verdict=verdict,
        not_worse=accuracy.low >= -NOT_WORSE_MARGIN,
        sentence=(
            f"Of {len(label_ids)} images the challenger alone gets {won} right and the champion "
            f"alone {lost}: accuracy {value} points (95 % interval {low} to {high}, "
            f"{'corrected for selection' if is_corrected else f'p = {p_value:.3f}'}), "
            f"so {conclusion}."
        ),
    )


def latency_ratio(model: Path, other: Path) -> float:
    """Return the median time of `model` for one image alone, over that of `other`.

    The two take turns, so that a machine whose speed changes is as fast for one as for the other.

    Raises:
        FormatError: one is not a model of this project.
    """
    models = load_model(model), load_model(other)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(_WARM_UP + _ROUNDS):
        for loaded, taken in zip(models, seconds, strict=True):
            pixels = np.zeros(loaded.inference.input_shape, np.uint8)
            started = time.perf_counter()
            loaded.inference.outputs(pixels)
            taken.append(time.perf_counter() - started)
    ours, theirs = (statistics.median(taken[_WARM_UP:]) for taken in seconds)
    return ours / theirs


def _losses(probabilities: Probabilities, label_ids: NDArray[np.int64]) -> NDArray[np.float64]:
    true = probabilities[np.arange(len(label_ids)), label_ids].astype(np.float64)
    losses: NDArray[np.float64] = -np.log(np.maximum(true, _TINY))
    return losses
