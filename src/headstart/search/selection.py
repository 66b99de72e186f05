"""What the best of many trials may be expected to reach on new images, and the answers it is from.

The best out-of-fold value of many trials is partly luck. Bootstrap bias-corrected cross-validation
draws the images anew, many times, chooses the best trial on the drawn ones, and values that trial
on those that were not drawn: Tsamardinos, Greasidou and Borboudakis, "Bootstrapping the out-of-
sample predictions for efficient and accurate cross-validation", Machine Learning, 2018. Images of a
group are drawn together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headstart.common.files import replacing
from headstart.heads.metrics import DIRECTION, METRICS, PER_IMAGE

_N_DRAWS = 200

Floats = NDArray[np.floating]


class AnswerStore:
    """Out-of-fold probabilities of a study's trials, float16 (n_images, n_classes), by number."""

    def __init__(self, folder: Path, study_name: str) -> None:
        self._folder = folder / f"{study_name}.out_of_fold"

    def write(self, number: int, probabilities: Floats) -> None:
        """Keep a trial's answers; before the trial is told, so that a kill loses neither."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with replacing(self._folder / f"{number}.npy") as temporary, temporary.open("wb") as stream:
            np.save(stream, probabilities.astype(np.float16))

    def read(self, numbers: Sequence[int]) -> dict[int, NDArray[np.float16]]:
        """The answers of those trials that were made on this machine."""
        paths = {number: self._folder / f"{number}.npy" for number in numbers}
        return {number: np.load(path) for number, path in paths.items() if path.is_file()}


@dataclass(frozen=True)
class Corrected:
    """What the best of many trials may be expected to do on new images.

    Attributes:
        estimate: of the search's metric.
        optimism: how much less accuracy than the best trial shows out of fold.
    """

    estimate: float
    optimism: float


def correct_for_selection(
    metric: str,
    label_ids: NDArray[np.int64],
    groups: Sequence[str],
    answers: Mapping[int, Floats],
    *,
    seed: int,
) -> Corrected | None:
    """Choose among trials on images drawn anew, and judge the choice on the others, many times.

    Args:
        label_ids: (n,); `groups`: their keys.
        answers: by trial, probabilities (n, n_classes).

    Returns:
        None where there are no answers, or no draw leaves an image out.
    """
    if not answers:
        return None
    sign = 1 if DIRECTION[metric] == "maximize" else -1
    stacked = [np.asarray(answers[number], np.float32) for number in sorted(answers)]
    _, group_of = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    n_groups = int(group_of.max()) + 1
    chance = np.random.default_rng([seed, 5])
    hits = np.stack([PER_IMAGE["accuracy"](label_ids, one) for one in stacked])
    per_image = None
    if metric in PER_IMAGE:
        per_image = np.stack([PER_IMAGE[metric](label_ids, one) for one in stacked])
    values, accuracies = [], []
    for _ in range(_N_DRAWS):
        times = np.bincount(chance.integers(n_groups, size=n_groups), minlength=n_groups)[group_of]
        outside = np.flatnonzero(times == 0)
        if not len(outside):
            continue
        if per_image is not None:
            best = int(np.argmax(sign * (per_image @ times)))
            values.append(float(per_image[best, outside].mean()))
        else:
            drawn = np.repeat(np.arange(len(label_ids)), times)
            inside = np.array([METRICS[metric](label_ids[drawn], one[drawn]) for one in stacked])
            best = int(np.argmax(sign * inside))
            values.append(float(METRICS[metric](label_ids[outside], stacked[best][outside])))
        accuracies.append(hits[best, outside].mean())
    if not values:
        return None
    if len(stacked) == 1:
        return Corrected(float(np.mean(values)), 0.0)
    chosen = int(np.argmax(sign * np.array([METRICS[metric](label_ids, one) for one in stacked])))
    return Corrected(
        float(np.mean(values)), max(0.0, float(hits[chosen].mean() - np.mean(accuracies)))
    )
