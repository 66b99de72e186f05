"""An ensemble of a study's trials: whose answers together are better than the best one's.

Greedy selection with replacement: Caruana, Niculescu-Mizil, Crew and Ksikes, "Ensemble selection
from libraries of models", ICML 2004, by log loss. Logits are averaged, as the model does, so linear
heads become one. The choice is judged on images that it was not made on: by folds of groups, each
valued with the ensemble and the best trial that the other folds choose.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headstart.heads.metrics import PER_IMAGE, softmax

_MOST_HEADS, _MOST_STEPS = 5, 12
_MOST_CANDIDATES, _MOST_IMAGES, _MOST_NUMBERS = 24, 4096, 2**20
_FOLDS = 5
_SMALLEST = 1e-7

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Ensemble:
    """Trials whose weighted mean logits are the answer.

    Attributes:
        members: trial → how often it was chosen.
        gain, error: log loss less than the best trial's, on images that the choice did not see, a
            mean over images, and its standard error over groups.
        answers: of these images, in the order of `rows`, float64 (n, n_classes): probabilities of
            ensembles that other images chose.
        rows: int64 (n,), places among the images that were given.
        own_accuracy: that the ensemble has on the images that chose it.
    """

    members: dict[int, int]
    gain: float
    error: float
    answers: NDArray[np.float64]
    rows: NDArray[np.int64]
    own_accuracy: float

    @property
    def is_better(self) -> bool:
        """Whether it beats the best trial by more than one standard error."""
        return len(self.members) > 1 and self.gain > self.error


def choose_ensemble(
    label_ids: NDArray[np.int64],
    groups: Sequence[str],
    answers: Mapping[int, Floats],
    ranked: Sequence[int],
    *,
    seed: int,
) -> Ensemble | None:
    """Choose an ensemble, and judge the choice.

    Args:
        label_ids: (n,); `groups`: their keys.
        answers: by trial, out-of-fold probabilities (n, n_classes).
        ranked: the trials, best first; the first few of those with answers are candidates.

    Returns:
        None where there are fewer than two candidates or groups.
    """
    numbers = [number for number in ranked if number in answers][:_MOST_CANDIDATES]
    _, group_of = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    if len(numbers) < 2 or group_of.max(initial=0) < 1:
        return None
    chance = np.random.default_rng([seed, 6])
    rows = np.arange(len(label_ids))
    # Of many classes fewer images: a choice looks at every probability of every candidate.
    most = max(1024, min(_MOST_IMAGES, _MOST_NUMBERS // answers[numbers[0]].shape[1]))
    if len(rows) > most:
        rows = np.sort(chance.choice(rows, most, replace=False))
    labels = label_ids[rows]
    logits = np.log(
        np.maximum(np.stack([np.asarray(answers[n], np.float32)[rows] for n in numbers]), _SMALLEST)
    )
    n_groups = int(group_of.max()) + 1
    fold_of = (chance.permutation(n_groups) % min(_FOLDS, n_groups))[group_of[rows]]
    found = np.zeros(logits.shape[1:])
    gains = np.zeros(len(rows))
    for fold in np.unique(fold_of):
        seen, unseen = fold_of != fold, fold_of == fold
        chosen = _greedy(logits[:, seen], labels[seen])
        found[unseen] = softmax(np.mean(logits[chosen][:, unseen], axis=0, dtype=np.float64))
        # The first that a greedy choice makes is the best trial.
        best = _losses(logits[chosen[0]][None, unseen], labels[unseen])[0]
        together = np.mean(logits[chosen][:, unseen], axis=0)
        gains[unseen] = best - _losses(together[None], labels[unseen])[0]
    of_groups = np.bincount(group_of[rows], gains, n_groups)
    spread = of_groups - gains.mean() * np.bincount(group_of[rows], minlength=n_groups)
    error = float(np.sqrt(np.square(spread).sum())) / len(rows)
    members = _greedy(logits, labels)
    own = softmax(np.mean(logits[members], axis=0, dtype=np.float64))
    return Ensemble(
        members={numbers[place]: times for place, times in sorted(Counter(members).items())},
        gain=float(gains.mean()),
        error=error,
        answers=found,
        rows=rows,
        own_accuracy=float(PER_IMAGE["accuracy"](labels, own).mean()),
    )


def _greedy(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> list[int]:
    """Places of candidates, float32 (candidates, n, n_classes), in the order of being chosen."""
    losses = _losses(logits, labels).mean(axis=1)
    chosen = [int(np.argmin(losses))]
    least, total = float(losses.min()), logits[chosen[0]].copy()
    while len(chosen) < _MOST_STEPS:
        distinct = set(chosen)
        candidates = range(len(logits)) if len(distinct) < _MOST_HEADS else sorted(distinct)
        together = [(total + logits[place]) / (len(chosen) + 1) for place in candidates]
        losses = _losses(np.stack(together), labels).mean(axis=1)
        if losses.min() >= least:
            break
        place = candidates[int(np.argmin(losses))]
        least, total = float(losses.min()), total + logits[place]
        chosen.append(place)
    return chosen


def _losses(logits: Floats, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Log loss of each image, float64 (candidates, n)."""
    highest = logits.max(axis=-1)
    total = np.exp(logits - highest[..., None]).sum(axis=-1, dtype=np.float64)
    return np.asarray(
        np.log(total) + highest - np.take_along_axis(logits, labels[None, :, None], axis=2)[..., 0]
    )
