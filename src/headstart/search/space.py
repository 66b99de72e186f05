"""From the space of params.yaml to heads: asked of an Optuna trial, drawn, or all of a grid.

A field is asked for only where the head uses it; what is not asked for keeps its default, so equal
heads have equal configs.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from headstart.common.errors import SearchError
from headstart.heads.config import HeadConfig
from headstart.params.head import USED
from headstart.params.search import SearchParams
from headstart.params.search_space import Choices, Range, SearchSpace

if TYPE_CHECKING:
    from optuna.trial import Trial

Choose = Callable[[str, Any], Any]
"""Answers (field name, its `Choices` or `Range`) with a value."""


FIELDS = tuple(USED)
# Those that the conditions of others read.
_DECISIVE = ("kind", "hidden_layers", "optimizer", "schedule")


def suggest(space: SearchSpace, choose: Choose) -> HeadConfig:
    """The head that `choose` makes of the space; it is asked only for fields that count."""
    chosen: dict[str, Any] = {}
    for name, counts in USED.items():
        if counts(chosen):
            domain = getattr(space, name)
            chosen[name] = choose(name, domain) if _is_open(domain) else domain
    return HeadConfig.model_validate(chosen)


def asking(trial: "Trial") -> Choose:
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
    # Spaces are looked at where no study is opened, and Optuna takes a second to import.
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

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


def grid_size(space: SearchSpace) -> int | None:
    """How many heads a space has; None where a field is a range without steps."""
    try:
        return _size(space, FIELDS, {})
    except _EndlessError:
        return None


def check_grid(space: SearchSpace) -> None:
    """Refuse a space that is no grid.

    Raises:
        SearchError: a field has a range without steps.
    """
    try:
        _size(space, FIELDS, {})
    except _EndlessError as endless:
        raise SearchError(
            f"a grid needs every field of search.space fixed, in choices or with a step, but "
            f"{endless} is a range without steps: give it a step, or take another search.sampler"
        ) from None


def grid(space: SearchSpace) -> Iterator[HeadConfig]:
    """Every head of a finite space, once; the first n of them are spread over all of it.

    None is made before it is asked for, so that a grid may be of any size.

    Raises:
        SearchError: a field has a range without steps.
    """
    check_grid(space)
    size = _size(space, FIELDS, {})
    # Steps of the golden ratio fill a circle evenly; of no common divisor, they visit every place.
    stride = max(1, round(size * 0.6180339887))
    while math.gcd(stride, size) > 1:
        stride += 1
    yield from (_head_at(space, index * stride % size) for index in range(size))


class _EndlessError(Exception):
    """A field, by name, is a range without steps."""


def _size(space: SearchSpace, fields: Sequence[str], chosen: dict[str, Any]) -> int:
    """How many heads there are where `chosen` is, and `fields` are not yet."""
    if not fields:
        return 1
    name, *rest = fields
    domain = getattr(space, name)
    if not USED[name](chosen):
        return _size(space, rest, chosen)
    if name in _DECISIVE:
        return sum(_size(space, rest, {**chosen, name: value}) for value in _values(space, name))
    return (_count(name, domain) if _is_open(domain) else 1) * _size(space, rest, chosen)


def _head_at(space: SearchSpace, index: int) -> HeadConfig:
    """One head of a finite space, by its place in the order of its fields."""
    chosen: dict[str, Any] = {}
    for position, name in enumerate(FIELDS, start=1):
        if not USED[name](chosen):
            continue
        domain, rest = getattr(space, name), FIELDS[position:]
        if name in _DECISIVE:
            for value in _values(space, name):
                chosen[name] = value
                size = _size(space, rest, chosen)
                if index < size:
                    break
                index -= size
        elif _is_open(domain):
            place, index = divmod(index, _size(space, rest, chosen))
            chosen[name] = _value_at(domain, place)
        else:
            chosen[name] = domain
    return HeadConfig.model_validate(chosen)


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


def essence(head: HeadConfig) -> HeadConfig:
    """The head with defaults where a field does not count for it: equal for equal heads.

    The penalty of ridge does not count either: a trial tries a path of them.
    """
    values = head.model_dump()
    return HeadConfig.model_validate(
        {name: values[name] for name, counts in USED.items() if counts(values)}
    )


def is_used(head: HeadConfig, name: str) -> bool:
    """Whether a field counts for this head."""
    return USED[name](head.model_dump())


def known_fields(space: SearchSpace, head: HeadConfig) -> dict[str, Any]:
    """The fields of a head that the space asks for, where it allows their values."""
    values = head.model_dump()
    return {
        name: values[name]
        for name, counts in USED.items()
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
        for name, counts in USED.items()
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


def _count(name: str, domain: Any) -> int:
    """How many values an open field has."""
    if domain.choices is not None:
        return len(domain.choices)
    if domain.low == domain.high:
        return 1
    if domain.step is None and (domain.log or not _is_whole(name)):
        raise _EndlessError(name)
    steps: float = (domain.high - domain.low) / (domain.step or 1)
    return round(steps) + 1


def _values(space: SearchSpace, name: str) -> Iterator[Any]:
    """All values of a field, open or not."""
    domain = getattr(space, name)
    if _is_open(domain):
        yield from (_value_at(domain, index) for index in range(_count(name, domain)))
    else:
        yield domain


def _value_at(domain: Any, index: int) -> Any:
    """One value of an open field that has finitely many."""
    if domain.choices is not None:
        return domain.choices[index]
    return round(domain.low + index * (domain.step or 1), 12)
