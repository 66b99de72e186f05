"""A search that would not fit into memory is refused before it starts."""

from pathlib import Path

import pytest

from headstart.common.errors import SearchError
from headstart.features.feature_store import FeatureStore
from headstart.search import memory
from headstart.search.plan import plan_study
from tests.search.made_studies import params, run


def test_what_does_not_fit_is_told_with_the_remedy_and_leaves_nothing(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 0.1e9)
    with pytest.raises(SearchError) as told:
        run(features, tmp_path / "studies", n_trials=2, workers=2)
    text = str(told.value)
    assert "a search must fit into memory, but" in text
    assert "by each of 2 workers, and 0.1 GB are free: lower search.workers, or name fewer" in text
    assert not (tmp_path / "studies").exists()


def test_more_of_everything_needs_more(features: Path) -> None:
    with FeatureStore(features) as store:

        def needed(**search: object) -> float:
            chosen = params(**search)
            return memory.memory_needed(plan_study(store, chosen, seed=0), chosen)

        ridge = needed(space={"kind": "ridge"}, default_head={"kind": "ridge"})
        assert needed(space={"kind": "network"}, n_trials=4) > ridge
        many = needed(space={"kind": "ridge"}, default_head={"kind": "ridge"}, n_trials=10_000_000)
        assert many > ridge
