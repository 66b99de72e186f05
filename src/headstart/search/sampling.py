"""The samplers and pruners that params name, and the heads that every study begins with."""

import importlib.util
import warnings
from collections.abc import Iterable

import optuna
from optuna.exceptions import ExperimentalWarning

from headstart.common.errors import SearchError
from headstart.heads.config import HeadConfig
from headstart.params.search import SearchParams
from headstart.search.space import essence, extremes, grid_size, is_in_space

_MIN_EPOCHS = 3


def first_heads(search: SearchParams) -> list[HeadConfig]:
    """The default head, then ridge on all feature blocks where the space has it."""
    heads = [search.default_head]
    ridge = HeadConfig(kind="ridge")
    is_new = essence(ridge) != essence(search.default_head)
    if is_new and is_in_space(search.space, essence(ridge)):
        heads.append(ridge)
    return heads[: search.n_trials]


def is_enumerated(search: SearchParams) -> bool:
    """Whether every head of the space is tried once, rather than some sampled.

    So it is for a grid, and for any sampler where `n_trials` reaches for the whole space: samples
    would only repeat heads.
    """
    size = grid_size(search.space)
    return search.sampler == "grid" or (size is not None and size <= search.n_trials)


def is_exhausted(search: SearchParams, tried: Iterable[HeadConfig]) -> bool:
    """Whether there is no head of the space that has not been tried."""
    size = grid_size(search.space)
    heads = {essence(head) for head in tried if is_in_space(search.space, essence(head))}
    return size is not None and len(heads) >= size


def make_sampler(search: SearchParams, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler that params name. A grid's heads are enqueued: nothing is left to sample."""
    if search.sampler == "tpe":
        with warnings.catch_warnings():
            # `group` is what models conditional fields jointly; Optuna calls it experimental.
            warnings.simplefilter("ignore", ExperimentalWarning)
            return optuna.samplers.TPESampler(seed=seed, group=True)
    if search.sampler == "cmaes":
        if importlib.util.find_spec("cmaes") is None:
            raise SearchError(
                "search.sampler cmaes needs the package cmaes: install headstart[cmaes]"
            )
        return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
    return optuna.samplers.RandomSampler(seed=seed)


def make_pruner(search: SearchParams) -> optuna.pruners.BasePruner:
    """The pruner that params name; its resource is an epoch."""
    if search.pruner == "hyperband":
        most = max(*extremes(search.space, "epochs"), search.default_head.epochs, _MIN_EPOCHS)
        return optuna.pruners.HyperbandPruner(min_resource=_MIN_EPOCHS, max_resource=most)
    if search.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=8, n_warmup_steps=_MIN_EPOCHS)
    return optuna.pruners.NopPruner()
