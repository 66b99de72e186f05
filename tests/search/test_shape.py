"""How large a study's stack is."""

import numpy as np
import pytest

from headstart.heads.folds import RowGroup
from headstart.heads.program import MOST_TRAINING_BYTES
from headstart.params.search import SearchParams
from headstart.search.plan import StudyPlan
from headstart.search.sampling import first_heads
from headstart.search.shape import study_shape

WIDE = {"kind": "network", "hidden_layers": 1, "width": 256, "input_dropout": 0.0}


def _lanes(feature_dim: int, n_groups: int) -> tuple[int, int]:
    group = RowGroup(np.ones(2, np.float32), np.arange(1), 0)
    plan = StudyPlan(
        features=np.zeros((2, 1, feature_dim), np.float32),
        blocks={"last": slice(0, feature_dim)},
        label_ids=np.array([0, 1]),
        keys=("a", "b"),
        groups=(group,) * n_groups,
        n_classes=10,
        name="heads-1",
        topic={},
    )
    search = SearchParams.model_validate({"population": 16, "space": WIDE})
    shape = study_shape(plan, search, first_heads(search))
    return shape.lanes, shape.training_bytes()


def test_a_population_stays_within_memory() -> None:
    lanes, small = _lanes(1280, 1)
    assert lanes > 10
    assert small < MOST_TRAINING_BYTES
    lanes, large = _lanes(25_088, 1)
    assert 1 < lanes < 5
    assert large <= MOST_TRAINING_BYTES
    # gradients and two moments beside the weights
    assert large == pytest.approx(4 * 4 * lanes * 25_088 * 256, rel=0.01)


def test_one_head_is_always_allowed() -> None:
    lanes, size = _lanes(25_088, 20)
    assert lanes == 1
    assert size > MOST_TRAINING_BYTES
