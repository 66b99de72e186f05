"""Is one model better than another on the same images, or was it chance?

Sources: the paired percentile bootstrap (Efron and Tibshirani, 1993) gives the size of the
difference, McNemar's mid-p test (Fagerland, Lydersen, Laake, 2013) its surprise. A difference
counts only if both say so. Knows probabilities and labels, not which split they come from.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from headstart.common.errors import DataError
from headstart.evaluation.bootstrap import intervals

NOT_WORSE_MARGIN = 0.01
_SIGNIFICANCE = 0.05
_TINY = 1e-15

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
        """Plain values for reports/comparison.json."""
        return asdict(self)


def compare_models(
    champion_probabilities: Probabilities,
    challenger_probabilities: Probabilities,
    label_ids: NDArray[np.int64],
    *,
    seed: int,
    groups: Sequence[str] | None = None,
    n_resamples: int = 2000,
) -> Comparison:
    """Compare two models on the same images.

    Args:
        champion_probabilities: shape (n_images, n_classes), rows as those of the challenger.
        label_ids: shape (n_images,).
        groups: group key of each image; images of a group are drawn together.

    Raises:
        DataError: the shapes differ, or there are no images.
    """
    _check(champion_probabilities, challenger_probabilities, label_ids)
    champion_right = champion_probabilities.argmax(axis=1) == label_ids
    challenger_right = challenger_probabilities.argmax(axis=1) == label_ids
    gains = {
        "accuracy": challenger_right.astype(np.float64) - champion_right,
        "log_loss": _losses(challenger_probabilities, label_ids)
        - _losses(champion_probabilities, label_ids),
    }
    keys = [str(i) for i in range(len(label_ids))] if groups is None else groups
    found = intervals(
        lambda rows: {name: float(gain[rows].mean()) for name, gain in gains.items()},
        keys,
        n_resamples=n_resamples,
        seed=seed,
    )
    differences = {
        name: Difference(float(gain.mean()), found[name].low, found[name].high)
        for name, gain in gains.items()
    }
    lost = int((champion_right & ~challenger_right).sum())
    won = int((challenger_right & ~champion_right).sum())
    p_value = mid_p(lost, won)
    verdict = _verdict(differences["accuracy"], p_value)
    return Comparison(
        n_images=len(label_ids),
        champion_accuracy=float(champion_right.mean()),
        challenger_accuracy=float(challenger_right.mean()),
        accuracy=differences["accuracy"],
        log_loss=differences["log_loss"],
        only_champion_right=lost,
        only_challenger_right=won,
        p_value=p_value,
        verdict=verdict,
        not_worse=differences["accuracy"].low >= -NOT_WORSE_MARGIN,
        sentence=_sentence(len(label_ids), differences["accuracy"], lost, won, p_value, verdict),
    )


def mid_p(lost: int, won: int) -> float:
    """Two-sided mid-p of McNemar's test, from the counts of images only one model got right."""
    total, fewer = lost + won, min(lost, won)
    if total == 0:
        return 1.0
    half = binom.cdf(fewer, total, 0.5) - binom.pmf(fewer, total, 0.5) / 2
    return float(min(1.0, 2 * half))


def _losses(probabilities: Probabilities, label_ids: NDArray[np.int64]) -> NDArray[np.float64]:
    true = probabilities[np.arange(len(label_ids)), label_ids].astype(np.float64)
    losses: NDArray[np.float64] = -np.log(np.maximum(true, _TINY))
    return losses


def _verdict(difference: Difference, p_value: float) -> Verdict:
    if p_value >= _SIGNIFICANCE:
        return "undecided"
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else "undecided"


def _sentence(
    n_images: int, difference: Difference, lost: int, won: int, p_value: float, verdict: Verdict
) -> str:
    conclusion = {
        "better": "the challenger is better",
        "worse": "the challenger is worse",
        "undecided": "these images cannot tell the two apart",
    }[verdict]
    return (
        f"Of {n_images} images the challenger alone gets {won} right and the champion alone "
        f"{lost}: accuracy {_points(difference.value)} points (95 % interval "
        f"{_points(difference.low)} to {_points(difference.high)}, p = {p_value:.3f}), "
        f"so {conclusion}."
    )


def _points(fraction: float) -> str:
    return f"{100 * fraction:+.1f}"


def _check(
    champion: Probabilities, challenger: Probabilities, label_ids: NDArray[np.int64]
) -> None:
    if champion.shape != challenger.shape or len(champion) != len(label_ids):
        raise DataError(
            "two models are compared on the same images and classes, but got probabilities of "
            f"shape {champion.shape} and {challenger.shape} for {len(label_ids)} labels: "
            "evaluate both on the same manifest"
        )
    if len(label_ids) == 0:
        raise DataError("a comparison needs images, but got none: give the split some")
