"""From the space of params.yaml to heads: asked of an Optuna trial, drawn, or all of a grid.

A field is asked for only where the head uses it; what is not asked for keeps its default, so equal
heads have equal configs.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from headstart.errors import SearchError
from headstart.heads.config import HeadConfig
from headstart.params.search_space import Choices, Range, SearchSpace

Values = Mapping[str, Any]
Choose = Callable[[str, Any], Any]
"""Answers (field name, its `Choices` or `Range`) with a value."""


def _always(_: Values) -> bool:
    return True


def _of_network(head: Values) -> bool:
    return bool(head["kind"] == "network")


def _of_hidden(head: Values) -> bool:
    return _of_network(head) and head["hidden_layers"] > 0


# Every field after those that its condition reads.
_USED: dict[str, Callable[[Values], bool]] = {
    "kind": _always,
    "normalisation": _always,
    "class_weights": _always,
    "l2": lambda head: not _of_network(head),
    "hidden_layers": _of_network,
    "width": _of_hidden,
    "activation": _of_hidden,
    "dropout": _of_hidden,
    "input_dropout": _of_network,
    "optimizer": _of_network,
    "learning_rate": _of_network,
    "weight_decay": _of_network,
    "momentum": lambda head: _of_network(head) and head["optimizer"] == "sgd",
    "schedule": _of_network,
    "warmup": lambda head: _of_network(head) and head["schedule"] == "cosine",
    "label_smoothing": _of_network,
    "epochs": _of_network,
}
FIELDS = tuple(_USED)


def suggest(space: SearchSpace, choose: Choose) -> HeadConfig:
    """The head that `choose` makes of the space; it is asked only for fields that count."""
    chosen: dict[str, Any] = {}
    for name, counts in _USED.items():
        if counts(chosen):
            domain = getattr(space, name)
            chosen[name] = choose(name, domain) if _is_open(domain) else domain
    return HeadConfig.model_validate(chosen)


def asking(trial: Trial) -> Choose:
    """Choose by what an Optuna trial suggests."""

    def choose(name: str, domain: Any) -> Any:
        if domain.choices is not None:
            return trial.suggest_categorical(name, list(domain.choices))
        low, high, step, log = domain.low, domain.high, domain.step, domain.log
        if _is_whole(name):
            return trial.suggest_int(name, low, high, step=step or 1, log=log)
        return trial.suggest_float(name, float(low), float(high), step=step, log=log)

    return choose


def distributions(space: SearchSpace, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Optuna's distributions of some open fields, as `asking` makes them."""
    found: dict[str, Any] = {}
    for name in fields:
        domain = getattr(space, name)
        if domain.choices is not None:
            found[name] = CategoricalDistribution(list(domain.choices))
        elif _is_whole(name):
            found[name] = IntDistribution(
                domain.low, domain.high, log=domain.log, step=domain.step or 1
            )
        else:
            found[name] = FloatDistribution(
                float(domain.low), float(domain.high), log=domain.log, step=domain.step
            )
    return found


def drawing(chance: np.random.Generator) -> Choose:
    """Choose uniformly, or log-uniformly where the range says so."""

    def choose(name: str, domain: Any) -> Any:
        if domain.choices is not None or domain.step is not None:
            values = _all_values(name, domain)
            return values[int(chance.integers(len(values)))]
        low, high = domain.low, domain.high
        if domain.log:
            value = float(np.exp(chance.uniform(np.log(low), np.log(high))))
        else:
            value = float(chance.uniform(low, high + (1 if _is_whole(name) else 0)))
        return int(np.clip(int(value), low, high)) if _is_whole(name) else value

    return choose


def grid(space: SearchSpace) -> Iterator[HeadConfig]:
    """Every head of a finite space, once.

    Raises:
        SearchError: a field has a range without steps.
    """
    yield from _expanded(space, FIELDS, {})


def _expanded(
    space: SearchSpace, fields: tuple[str, ...], chosen: dict[str, Any]
) -> Iterator[HeadConfig]:
    if not fields:
        yield HeadConfig.model_validate(chosen)
        return
    name, domain = fields[0], getattr(space, fields[0])
    if not _USED[name](chosen):
        yield from _expanded(space, fields[1:], chosen)
        return
    for value in _all_values(name, domain) if _is_open(domain) else (domain,):
        yield from _expanded(space, fields[1:], {**chosen, name: value})


def is_used(head: HeadConfig, name: str) -> bool:
    """Whether a field counts for this head."""
    return _USED[name](head.model_dump())


def known_fields(space: SearchSpace, head: HeadConfig) -> dict[str, Any]:
    """The fields of a head that the space asks for, where it allows their values."""
    values = head.model_dump()
    return {
        name: values[name]
        for name, counts in _USED.items()
        if counts(values)
        and _is_open(getattr(space, name))
        and _allows(getattr(space, name), values[name])
    }


def is_in_space(space: SearchSpace, head: HeadConfig) -> bool:
    """Whether the space could ask for exactly this head."""
    values = head.model_dump()
    defaults = HeadConfig().model_dump()
    return all(
        _allows(getattr(space, name), values[name])
        if counts(values)
        else values[name] == defaults[name]
        for name, counts in _USED.items()
    )


def extremes(space: SearchSpace, name: str) -> tuple[Any, ...]:
    """The values of a field: all of them where it has choices, else its bounds."""
    domain = getattr(space, name)
    if not _is_open(domain):
        return (domain,)
    if domain.choices is not None:
        return tuple(domain.choices)
    return (domain.low, domain.high)


def _is_open(domain: Any) -> bool:
    return isinstance(domain, Choices | Range)


def _is_whole(name: str) -> bool:
    return HeadConfig.model_fields[name].annotation is int


def _allows(domain: Any, value: Any) -> bool:
    if not _is_open(domain):
        return bool(value == domain)
    if domain.choices is not None:
        return value in domain.choices
    # Optuna's own steps miss the upper bound by as much as floats are rounded.
    if not domain.low - 1e-9 <= value <= domain.high + 1e-9:
        return False
    steps = (value - domain.low) / (domain.step or 1)
    return domain.step is None or bool(abs(steps - round(steps)) < 1e-6)


def _all_values(name: str, domain: Any) -> tuple[Any, ...]:
    if domain.choices is not None:
        return tuple(domain.choices)
    low, high, step = domain.low, domain.high, domain.step
    if step is None and (domain.log or not _is_whole(name)):
        raise SearchError(
            f"a grid needs every field of search.space fixed, in choices or with a step, but "
            f"{name} is a range without steps: give it a step, or take another search.sampler"
        )
    count = round((high - low) / (step or 1)) + 1
    return tuple(round(low + index * (step or 1), 12) for index in range(count))
