"""The fields that a study's trials differ in, as axes to plot them on."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.heads.config import HeadConfig
from headstart.params.search_space import Range, SearchSpace
from headstart.search.search_heads import TrialResult
from headstart.search.space import FIELDS, is_used

Floats = NDArray[np.float64]
_LOG_RATIO = 20


@dataclass(frozen=True)
class Field:
    """One field over some trials.

    Attributes:
        values: one a trial; None where the head has no use for the field.
        is_log: whether a logarithmic axis shows it better.
    """

    name: str
    values: tuple[Any, ...]
    is_log: bool

    @property
    def title(self) -> str:
        return self.name.replace("_", " ")

    @cached_property
    def options(self) -> tuple[Any, ...]:
        """The values that occur, sorted."""
        return tuple(sorted({value for value in self.values if value is not None}))

    @property
    def is_numeric(self) -> bool:
        return not isinstance(self.options[0], str)

    def positions(self) -> Floats:
        """The trials on an axis from 0 to 1; NaN where the field is not used."""
        if not self.is_numeric:
            places = {value: i for i, value in enumerate(self.options)}
            raw = np.array([places.get(value, np.nan) for value in self.values], np.float64)
        else:
            raw = self.numbers()
            raw = np.log(raw) if self.is_log else raw
        low, high = np.nanmin(raw), np.nanmax(raw)
        return np.asarray((raw - low) / (high - low) if high > low else raw - low + 0.5)

    def numbers(self) -> Floats:
        """The values of a numeric field; NaN where it is not used."""
        return np.array([np.nan if value is None else value for value in self.values], np.float64)

    def ticks(self) -> list[tuple[float, str]]:
        """Places on the axis of `positions`, and what to write there."""
        if not self.is_numeric or len(self.options) <= 5:
            only = Field(self.name, self.options, self.is_log).positions()
            return [(float(p), _text(v)) for p, v in zip(only, self.options, strict=True)]
        low, high = self.options[0], self.options[-1]
        shares = (0.0, 0.5, 1.0)
        if self.is_log:
            marks = [low * (high / low) ** share for share in shares]
        else:
            marks = [low + (high - low) * share for share in shares]
        return [(share, _text(mark)) for share, mark in zip(shares, marks, strict=True)]


def varied_fields(trials: Sequence[TrialResult], space: SearchSpace) -> list[Field]:
    """The fields in which these trials' heads differ, in the order in which they are asked for."""
    fields = []
    for name in FIELDS:
        values = tuple(_value(trial.config, name) for trial in trials)
        if len({value for value in values if value is not None}) > 1:
            fields.append(Field(name, values, _is_log(space, name, values)))
    return fields


def _value(config: HeadConfig | None, name: str) -> Any:
    return getattr(config, name) if config is not None and is_used(config, name) else None


def _is_log(space: SearchSpace, name: str, values: Sequence[Any]) -> bool:
    domain = getattr(space, name)
    numbers = [value for value in values if isinstance(value, int | float)]
    if not numbers or min(numbers) <= 0:
        return False
    is_wide = max(numbers) / min(numbers) >= _LOG_RATIO
    return is_wide or (isinstance(domain, Range) and domain.log)


def _text(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)
