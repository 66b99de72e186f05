"""The search section: how many heads are tried, how, and in what space."""

from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from headstart.params.base import Flag, Section
from headstart.params.head import HeadConfig, ValidationViews
from headstart.params.search_space import DEFAULT_SPACE, SearchSpace

Metric = Literal[
    "accuracy", "balanced_accuracy", "macro_f1", "top_3_accuracy", "log_loss", "brier", "ece"
]

# What one would write with scikit-learn: the head that every search must beat.
DEFAULT_HEAD = HeadConfig(kind="logistic_regression", layers="last", normalisation="none")


class SearchParams(Section):
    """The study over heads."""

    rarely_changed: ClassVar = frozenset(
        {"validation_views", "pruner", "patience", "batch_size", "reuse_trials"}
        | {"max_mflops", "max_model_mb"}
    )

    renamed: ClassVar = {"judged_on": "validation_views"}
    no_longer: ClassVar = {"population": "networks are trained one after another"}

    n_trials: int = Field(32, ge=1, description="trials that end: completed or pruned")
    timeout_s: float | None = Field(None, gt=0, description="seconds after which no trial begins")
    metric: Metric = Field("accuracy", description="what the search optimises, on unseen images")
    validation_views: ValidationViews = Field(
        "plain", description="mean_of_views: test-time augmentation over all of extract.views"
    )
    sampler: Literal["tpe", "random", "grid", "cmaes"] = Field(
        "tpe", description="Optuna's sampler"
    )
    pruner: Literal["hyperband", "median", "none"] = Field("none", description="Optuna's pruner")
    patience: int = Field(8, ge=1, description="epochs without a better metric before stopping")
    batch_size: int = Field(64, ge=1, le=65536, description="images per gradient step")
    folds: int | None = Field(
        None,
        ge=1,
        le=20,
        description="of cross-validation; 1: validation split; null: 5, or 1 where it was given",
    )
    repeats: int = Field(1, ge=1, le=20, description="seeds a head is trained from")
    workers: int = Field(1, ge=1, le=256, description="processes on this machine")
    storage: str | None = Field(None, description="an Optuna URL; null: one SQLite file")
    reuse_trials: Flag = Field(False, description="start a study with old trials that fit")
    max_mflops: float | None = Field(
        None, gt=0, description="most floating-point operations of the model an image, in millions"
    )
    max_model_mb: float | None = Field(
        None, gt=0, description="most megabytes of the model's weights"
    )
    default_head: HeadConfig = Field(DEFAULT_HEAD, description="the first trial")
    space: SearchSpace = Field(DEFAULT_SPACE)

    @field_validator("space")
    @classmethod
    def _complete(cls, space: SearchSpace, info: ValidationInfo) -> SearchSpace:
        # Where default_head itself is mistaken, that is told, and nothing is missing here.
        return space.around(info.data.get("default_head", DEFAULT_HEAD))
