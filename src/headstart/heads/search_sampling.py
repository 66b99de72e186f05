"""The samplers and pruners that params name, and the heads that every study begins with."""

import importlib.util
import warnings
from itertools import islice

import optuna
from optuna.exceptions import ExperimentalWarning

from headstart.errors import SearchError
from headstart.heads.config import HeadConfig
from headstart.heads.search_space import extremes, grid, is_in_space
from headstart.params.search import SearchParams

_MIN_EPOCHS = 3


def first_heads(search: SearchParams) -> list[HeadConfig]:
    """The default head, then a linear probe where the space has it; or the whole grid."""
    heads = [search.default_head]
    if search.sampler == "grid":
        others = (head for head in grid(search.space) if head != search.default_head)
        return [*heads, *islice(others, search.n_trials - 1)]
    probe = HeadConfig(kind="linear_probe")
    if probe != search.default_head and is_in_space(search.space, probe):
        heads.append(probe)
    return heads[: search.n_trials]


def make_sampler(search: SearchParams, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler that params name. Grids are enqueued, so nothing is left to sample there."""
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
