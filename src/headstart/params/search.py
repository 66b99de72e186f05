"""The search section: how many heads are tried, how, and in what space."""

from typing import Literal

from pydantic import Field

from headstart.params.base import Section

Metric = Literal["accuracy", "balanced_accuracy", "macro_f1", "log_loss", "brier", "ece"]


class SearchParams(Section):
    """The study over heads."""

    n_trials: int = Field(32, ge=1)
    metric: Metric = Field("log_loss")
    sampler: Literal["tpe", "random", "grid", "cmaes"] = Field("tpe")
    pruner: Literal["hyperband", "median", "none"] = Field("none")
    epochs: int = Field(40, ge=1)
    patience: int = Field(8, ge=1, description="epochs without a better metric before stopping")
    batch_size: int = Field(64, ge=1)
    population: int = Field(16, ge=1, description="heads trained together")
    folds: int = Field(1, ge=1, le=20)
    repeats: int = Field(1, ge=1, le=20)
    workers: int = Field(1, ge=1, le=256)
    timeout_s: float | None = Field(None, gt=0)
    storage: str | None = Field(None, description="an Optuna URL; none: a journal file")
    reuse_trials: bool = Field(False, description="begin a new study with fitting old trials")
