"""How large a study's head stack is, from its space alone: one program for the whole study."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from headstart.heads.config import HeadConfig
from headstart.heads.lanes import Lanes, columns_needed, features_used, slots_for
from headstart.heads.program import MOST_TRAINING_BYTES, Shape
from headstart.params.search import SearchParams
from headstart.search.plan import StudyPlan
from headstart.search.space import drawing, extremes, suggest

_POPULATIONS = 16


def study_shape(plan: StudyPlan, search: SearchParams, first: Sequence[HeadConfig]) -> Shape:
    """A stack that holds, on average, a population drawn from the space, or what memory allows.

    Every head of the space, and of `first`, fits into it when it is empty.
    """
    chance = np.random.default_rng(0)
    drawn = [
        suggest(search.space, drawing(chance)) for _ in range(_POPULATIONS * search.population)
    ]
    networks = [head for head in (*drawn, *first) if head.kind == "network"]
    every = [*_extreme_heads(search), *networks]
    columns = max((columns_needed(head, plan.n_classes) for head in every), default=1)
    shape = Shape(
        groups=len(plan.groups),
        lanes=search.population,
        slots=slots_for(columns, plan.n_classes, search.population),
        columns=columns,
        feature_dim=plan.features.shape[2],
        n_classes=plan.n_classes,
        batch_size=search.batch_size,
        **features_used(every),
    )
    starts = range(0, len(networks), search.population)
    used = [_lanes_used(shape, networks[i : i + search.population]) for i in starts]
    wanted = max(1, round(float(np.mean(used)))) if used else 1
    allowed = max(1, MOST_TRAINING_BYTES // replace(shape, lanes=1).training_bytes())
    return replace(shape, lanes=min(wanted, allowed))


def _extreme_heads(search: SearchParams) -> list[HeadConfig]:
    """Networks that between them need every part of the program that the space may need."""
    space = search.space
    if "network" not in extremes(space, "kind"):
        return []
    largest = {
        name: max(extremes(space, name))
        for name in ("hidden_layers", "width", "input_dropout", "dropout")
    }
    ways = itertools.product(extremes(space, "activation"), extremes(space, "normalisation"))
    return [
        HeadConfig(activation=activation, normalisation=normalisation, **largest)
        for activation, normalisation in ways
    ]


def _lanes_used(shape: Shape, heads: Sequence[HeadConfig]) -> int:
    lanes = Lanes(shape)
    places = [lanes.take(head) for head in heads]
    return 1 + max(place.lane for place in places if place is not None)
