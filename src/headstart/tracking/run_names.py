"""What a run is called: MLflow's table shows about 25 characters, so what differs comes first."""

import os
from collections import Counter

from headstart.heads.config import HeadConfig
from headstart.params.whole_file import Params
from headstart.tracking.lineage import flatten

# They say how something was computed, or come later in the name.
_NOT_IN_NAMES = (
    "data.source", "extract.batch_size", "search.storage", "search.timeout_s", "search.workers",
)  # fmt: skip
# evaluate and register make no run of their own.
_SECTIONS_LEFT_OUT = {"evaluate", "register_"}
_MOST_DIFFERENCES = 3
_MOST_CHARACTERS = 24


def run_name(params: Params, what: str) -> str:
    """Return DVC's experiment name if there is one, what differs, the data, and `what` was made.

    Runs are found by their ids and tags, never by this name.
    """
    differences = what_differs(params)
    if len(differences) > _MOST_DIFFERENCES:
        differences = [*differences[:_MOST_DIFFERENCES], "…"]
    experiment = os.environ.get("DVC_EXP_NAME")
    parts = [experiment, *differences, data_in_words(params.data.source), what]
    return " · ".join(part for part in parts if part)


def what_differs(params: Params) -> list[str]:
    """Return the params that are not at their defaults as `name=value`, the model's nearest first.

    A name is the param's path within its section, with the section where two have such a one.
    """
    given, default = (
        flatten(every.model_dump(mode="json", by_alias=True, exclude=_SECTIONS_LEFT_OUT))
        for every in (params, Params())
    )
    # "seed" is in no section.
    short = {name: name.partition(".")[2] or name for name in {**default, **given}}
    times = Counter(short.values())
    return [
        f"{short[name] if times[short[name]] == 1 else name}={_cut(value)}"
        for name, value in reversed(given.items())
        if value != default.get(name) and name not in _NOT_IN_NAMES
    ]


def data_in_words(source: str) -> str:
    """A data source as a person would name it: its last part, without an ending or a query."""
    last = source.split("?")[0].rstrip("/").rpartition("/")[2]
    return last.partition(".")[0] or last


def head_in_words(head: HeadConfig) -> str:
    """A head as a person would name it."""
    if head.kind == "linear_probe":
        return "linear probe"
    if head.hidden_layers == 0:
        return "linear"
    return f"{head.hidden_layers}×{head.width} {head.activation}"


def _cut(value: str) -> str:
    # Of a path its last part says most.
    last = value.rstrip("/").rpartition("/")[2] if len(value) > _MOST_CHARACTERS else value
    return last if len(last) <= _MOST_CHARACTERS else f"{last[: _MOST_CHARACTERS - 1]}…"
