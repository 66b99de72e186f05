"""The space of heads: each field of a head fixed, or a set of choices, or a range.

Made of the fields of `HeadConfig`: a hyperparameter is declared there alone.
"""

from typing import Annotated, Any, Generic, Self, TypeVar, get_origin

from pydantic import Discriminator, Field, Tag, create_model, model_validator

from headstart.params.base import Flag, Section
from headstart.params.head import USED, HeadConfig

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


def _value_or_domain(name: str) -> Any:
    """The type of a field of the space: None, a value of the head's field, or some of its values.

    What the head's field allows holds for every value of a domain.
    """
    field = HeadConfig.model_fields[name]
    # The tags appear in pydantic's error locations, where they must not be taken for keys.
    value = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    domain = (Choices if field.annotation is str or get_origin(field.annotation) else Range)[value]
    return Annotated[
        Annotated[value, Tag("<value>")]
        | Annotated[domain, Tag("<domain>")]
        | Annotated[None, Tag("<kept>")],
        Discriminator(_form),
    ]


_fields: Any = {
    name: (_value_or_domain(name), None) for name in HeadConfig.model_fields if name in USED
}
_Fields: Any = create_model("_Fields", __base__=Section, **_fields)


class SearchSpace(_Fields):
    """What trials vary; a field that is left out keeps default_head's value.

    A field counts only for heads that use it: `width`, `activation` and `dropout` for those with
    hidden layers, `momentum` for sgd, `warmup` for cosine, `l2` for logistic regression, which in
    turn uses nothing else but `layers`, `normalisation` and `class_weights`. `layers: any` stands
    for every set of the feature blocks. Of a ridge head every penalty of a path is tried.
    """

    def around(self, head: HeadConfig) -> Self:
        """Return the space with the fields that it leaves out fixed at a head's values."""
        fields = type(self).model_fields
        kept = {k: value for k, value in head if k in fields and getattr(self, k) is None}
        return self.model_copy(update=kept)


DEFAULT_SPACE = SearchSpace.model_validate(
    {
        "kind": "ridge",
        "layers": "any",
        "hidden_layers": {"choices": [0, 1]},
        "width": {"choices": [64, 128, 256]},
        "activation": {"choices": ["relu", "gelu"]},
        "normalisation": {"choices": ["none", "standardise", "layer_norm"]},
        "input_dropout": {"choices": [0.0, 0.3]},
        "dropout": {"low": 0.0, "high": 0.6, "step": 0.1},
        "learning_rate": {"low": 3e-4, "high": 1e-2, "log": True},
        "weight_decay": {"low": 1e-5, "high": 1e-1, "log": True},
        "l2": {"low": 1e-4, "high": 1.0, "log": True},
    }
).around(HeadConfig())
