"""The space of heads: each field of a head fixed, or a set of choices, or a range."""

from typing import Annotated, Any, Generic, Self, TypeVar

from pydantic import Discriminator, Field, Tag, model_validator

from headstart.params.base import Flag, Section
from headstart.params.head import (
    Activation,
    ClassWeights,
    Decay,
    Epochs,
    Fraction,
    HeadConfig,
    HiddenLayers,
    Kind,
    Layers,
    LearningRate,
    Normalisation,
    Optimizer,
    Penalty,
    Rate,
    Schedule,
    Width,
)

T = TypeVar("T")


class Choices(Section, Generic[T]):
    """One of these values."""

    choices: tuple[T, ...] = Field(strict=False, min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.choices)) < len(self.choices):
            raise ValueError(f"choices must differ, but got {list(self.choices)}: name each once")
        return self


class Range(Section, Generic[T]):
    """One of some values, or a number between two bounds, both included."""

    choices: tuple[T, ...] | None = Field(None, strict=False, min_length=1)
    low: T | None = None
    high: T | None = None
    step: Annotated[T, Field(gt=0)] | None = None
    log: Flag = False

    @model_validator(mode="after")
    def _possible(self) -> Self:
        low: Any = self.low
        high: Any = self.high
        if self.choices is not None:
            if (low, high, self.step, self.log) != (None, None, None, False):
                raise ValueError("choices stand alone: remove low, high, step and log, or choices")
            if len(set(self.choices)) < len(self.choices):
                raise ValueError(
                    f"choices must differ, but got {list(self.choices)}: name each once"
                )
            return self
        if low is None or high is None:
            raise ValueError("give either choices, or low and high")
        if low > high:
            raise ValueError(f"low must not be above high, but got low {low} and high {high}")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other: remove one")
        if self.step is not None and abs((high - low) / self.step % 1 - 0.5) < 0.5 - 1e-6:
            raise ValueError(f"step must lead from low to high, but {self.step} does not")
        if self.log and low <= 0:
            raise ValueError(f"a log range needs low above 0, but got {low}")
        return self


def _form(value: object) -> str:
    if value is None:
        return "<kept>"
    return "<domain>" if isinstance(value, dict | Section) else "<value>"


# The tags appear in pydantic's error locations, where they must not be taken for keys.
_ByForm = Discriminator(_form)
_Value, _Domain = Tag("<value>"), Tag("<domain>")
_Kept = Annotated[None, Tag("<kept>")]
SomeKind = Annotated[Annotated[Kind, _Value] | Annotated[Choices[Kind], _Domain] | _Kept, _ByForm]
SomeLayers = Annotated[
    Annotated[Layers, _Value] | Annotated[Choices[Layers], _Domain] | _Kept, _ByForm
]
SomeActivation = Annotated[
    Annotated[Activation, _Value] | Annotated[Choices[Activation], _Domain] | _Kept, _ByForm
]
SomeNormalisation = Annotated[
    Annotated[Normalisation, _Value] | Annotated[Choices[Normalisation], _Domain] | _Kept, _ByForm
]
SomeOptimizer = Annotated[
    Annotated[Optimizer, _Value] | Annotated[Choices[Optimizer], _Domain] | _Kept, _ByForm
]
SomeSchedule = Annotated[
    Annotated[Schedule, _Value] | Annotated[Choices[Schedule], _Domain] | _Kept, _ByForm
]
SomeClassWeights = Annotated[
    Annotated[ClassWeights, _Value] | Annotated[Choices[ClassWeights], _Domain] | _Kept, _ByForm
]
SomeHiddenLayers = Annotated[
    Annotated[HiddenLayers, _Value] | Annotated[Range[HiddenLayers], _Domain] | _Kept, _ByForm
]
SomeWidth = Annotated[Annotated[Width, _Value] | Annotated[Range[Width], _Domain] | _Kept, _ByForm]
SomeRate = Annotated[Annotated[Rate, _Value] | Annotated[Range[Rate], _Domain] | _Kept, _ByForm]
SomeLearningRate = Annotated[
    Annotated[LearningRate, _Value] | Annotated[Range[LearningRate], _Domain] | _Kept, _ByForm
]
SomeDecay = Annotated[Annotated[Decay, _Value] | Annotated[Range[Decay], _Domain] | _Kept, _ByForm]
SomeFraction = Annotated[
    Annotated[Fraction, _Value] | Annotated[Range[Fraction], _Domain] | _Kept, _ByForm
]
SomeEpochs = Annotated[
    Annotated[Epochs, _Value] | Annotated[Range[Epochs], _Domain] | _Kept, _ByForm
]
SomePenalty = Annotated[
    Annotated[Penalty, _Value] | Annotated[Range[Penalty], _Domain] | _Kept, _ByForm
]


class SearchSpace(Section):
    """What trials vary; a field that is left out keeps default_head's value.

    A field counts only for heads that use it: `width`, `activation` and `dropout` for those with
    hidden layers, `momentum` for sgd, `warmup` for cosine, `l2` for logistic regression, which in
    turn uses nothing else but `layers`, `normalisation` and `class_weights`. `layers: any` stands
    for every set of the feature blocks. Of a ridge head every penalty of a path is tried.
    """

    kind: SomeKind = None
    layers: SomeLayers = None
    hidden_layers: SomeHiddenLayers = None
    width: SomeWidth = None
    activation: SomeActivation = None
    normalisation: SomeNormalisation = None
    input_dropout: SomeRate = None
    dropout: SomeRate = None
    optimizer: SomeOptimizer = None
    learning_rate: SomeLearningRate = None
    weight_decay: SomeDecay = None
    momentum: SomeFraction = None
    schedule: SomeSchedule = None
    warmup: SomeFraction = None
    label_smoothing: SomeFraction = None
    class_weights: SomeClassWeights = None
    epochs: SomeEpochs = None
    l2: SomePenalty = None

    def around(self, head: HeadConfig) -> Self:
        """Return the space with the fields that it leaves out fixed at a head's values."""
        fields = type(self).model_fields
        kept = {k: value for k, value in head if k in fields and getattr(self, k) is None}
        return self.model_copy(update=kept)


DEFAULT_SPACE = SearchSpace(
    kind="ridge",
    layers="any",
    hidden_layers=Range[HiddenLayers](choices=(0, 1)),
    width=Range[Width](choices=(64, 128, 256)),
    activation=Choices[Activation](choices=("relu", "gelu")),
    normalisation=Choices[Normalisation](choices=("none", "standardise", "layer_norm")),
    input_dropout=Range[Rate](choices=(0.0, 0.3)),
    dropout=Range[Rate](low=0.0, high=0.6, step=0.1),
    learning_rate=Range[LearningRate](low=3e-4, high=1e-2, log=True),
    weight_decay=Range[Decay](low=1e-5, high=1e-1, log=True),
    l2=Range[Penalty](low=1e-4, high=1.0, log=True),
).around(HeadConfig())
