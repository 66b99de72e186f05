"""Places in the stack: never shared, and given back."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.heads.config import HeadConfig
from headstart.heads.lanes import Lanes, Place, lane_key, shape_for
from headstart.heads.program import Shape

SHAPE = Shape(groups=1, lanes=3, slots=3, columns=32, feature_dim=4, n_classes=5, batch_size=8)
HEADS = st.builds(
    HeadConfig,
    hidden_layers=st.integers(0, 2),
    width=st.integers(1, 32),
    normalisation=st.sampled_from(["none", "standardise"]),
    input_dropout=st.sampled_from([0.0, 0.5]),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(HEADS, st.booleans()), max_size=30))
def test_heads_never_overlap_and_agree_in_a_lane(steps: list[tuple[HeadConfig, bool]]) -> None:
    lanes = Lanes(SHAPE)
    held: list[tuple[HeadConfig, Place]] = []
    for head, release_first in steps:
        if release_first and held:
            lanes.release(held.pop(0)[1])
        place = lanes.take(head)
        if place is not None:
            held.append((head, place))
        for lane in range(SHAPE.lanes):
            here = [(h, p) for h, p in held if p.lane == lane]
            columns = np.concatenate([p.columns for _, p in here] or [np.arange(0)])
            assert len(set(columns)) == len(columns)
            assert len({p.slot for _, p in here}) == len(here)
            assert len({lane_key(h) for h, _ in here}) <= 1
            for h, p in here:
                assert len(p.columns) == (h.width if h.hidden_layers else SHAPE.n_classes)


def test_an_empty_stack_takes_any_head_again() -> None:
    lanes = Lanes(replace(SHAPE, lanes=1))
    place = lanes.take(HeadConfig(width=32, normalisation="none"))
    assert place is not None
    assert lanes.take(HeadConfig(width=1, normalisation="none")) is None
    lanes.release(place)
    assert lanes.take(HeadConfig(width=32, normalisation="standardise")) is not None


def test_heads_that_agree_share_a_lane() -> None:
    heads = [HeadConfig(width=16), HeadConfig(width=16), HeadConfig(hidden_layers=0)]
    shape = shape_for(heads, groups=1, feature_dim=4, n_classes=3, batch_size=8)
    assert (shape.lanes, shape.columns) == (3, 16)
    wider = [HeadConfig(width=64), *[HeadConfig(width=16)] * 4]
    shape = shape_for(wider, groups=1, feature_dim=4, n_classes=3, batch_size=8)
    assert (shape.lanes, shape.columns, shape.slots) == (2, 64, 4)
