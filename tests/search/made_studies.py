"""Short studies of made-up features, for the tests of the search."""

from pathlib import Path
from typing import Any

import optuna

from headstart.features.feature_store import FeatureStore
from headstart.params.search import SearchParams
from headstart.params.search_space import DEFAULT_SPACE
from headstart.search.plan import plan_study
from headstart.search.results import StudyResult
from headstart.search.search_heads import run_study
from headstart.search.study import open_storage

# One space for all tests, so that its programs are compiled once.
BASE: dict[str, Any] = {
    "n_trials": 6,
    "metric": "log_loss",
    "batch_size": 32,
    "patience": 3,
    "folds": 1,
    "default_head": {"kind": "network", "width": 8, "epochs": 4},
    "space": {
        **DEFAULT_SPACE.model_dump(),
        "kind": {"choices": ["network", "logistic_regression"]},
        "layers": "all",
        "width": {"choices": [4, 8]},
        "activation": "relu",
        "epochs": 4,
    },
}


def params(**changes: Any) -> SearchParams:
    space = {**BASE["space"], **changes.pop("space", {})}
    return SearchParams.model_validate({**BASE, **changes, "space": space})


def run(features: Path, folder: Path, seed: int = 0, **changes: Any) -> StudyResult:
    with FeatureStore(features) as store:
        return run_study(store, params(**changes), seed=seed, storage_folder=folder)


def study_of(features: Path, folder: Path, seed: int = 0, **changes: Any) -> optuna.Study:
    search = params(**changes)
    with FeatureStore(features) as store:
        name = plan_study(store, search, seed=seed).name
    return optuna.load_study(study_name=name, storage=open_storage(search, folder))
