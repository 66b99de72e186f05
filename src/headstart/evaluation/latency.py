"""Which of two models answers sooner, measured side by side on this machine."""

import statistics
import time
from pathlib import Path

import numpy as np

from headstart.models.model_file import LoadedModel, load_model
from headstart.models.pixels import predict_batch

_WARM_UP, _ROUNDS = 3, 15


def latency_ratio(model: Path, other: Path) -> float:
    """Median time of `model` for one image alone, over that of `other`.

    The two take turns, so that a machine whose speed changes is as fast for one as for the other.

    Raises:
        FormatError: one is not a model of this project.
    """
    models = load_model(model), load_model(other)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(_WARM_UP + _ROUNDS):
        for one, taken in zip(models, seconds, strict=True):
            taken.append(_seconds(one))
    ours, theirs = (statistics.median(taken[_WARM_UP:]) for taken in seconds)
    return ours / theirs


def _seconds(loaded: LoadedModel) -> float:
    picture = np.zeros((1, *loaded.model.input_shape[1:]), np.uint8)
    started = time.perf_counter()
    predict_batch(loaded.model, picture)
    return time.perf_counter() - started
