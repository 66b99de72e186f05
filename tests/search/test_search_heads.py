"""Studies: what is tried, when it ends, how it goes on, and what it says."""

import re
import shutil
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from headstart.common.errors import SearchError
from headstart.features.feature_store import FeatureStore
from headstart.heads.config import HeadConfig
from headstart.heads.folds import Fold
from headstart.heads.linear import RIDGE_PENALTIES
from headstart.heads.trainer import CrossValidation, HeadTrainer
from headstart.params.search import SearchParams
from headstart.search.plan import plan_study
from headstart.search.results import TrialResult
from headstart.search.search_heads import run_study
from headstart.search.worker import faster_search
from headstart.stages.search import summary
from tests.heads.made_features import write_made_features
from tests.search.made_studies import BASE, params, run, study_of


def _on_split(store: FeatureStore, config: HeadConfig, **options: Any) -> CrossValidation:
    n_train, batch = len(store.indices("train")), store.split("train", "validation")
    rows = np.arange(len(batch))
    trainer = HeadTrainer(
        batch.features, batch.label_ids, 4, store.columns(), batch_size=32, **options
    )
    return trainer.cross_validate(config, [Fold(rows[:n_train], rows[n_train:], 0)], patience=3)


def test_the_default_head_is_trial_0_and_training_it_again_gives_the_same(
    features: Path, tmp_path: Path
) -> None:
    result = run(features, tmp_path, n_trials=9, space={"kind": "network"})
    assert [trial.number for trial in result.trials] == list(range(9))
    assert {trial.state for trial in result.trials} == {"COMPLETE"}
    assert result.trials[0].config == params().default_head
    assert result.best.value == min(t.value for t in result.trials if t.value is not None)
    with FeatureStore(features) as store:
        for trial in result.trials:
            assert trial.config is not None
            again = _on_split(store, trial.config).curve
            assert again.values == trial.curve
            assert again.best_epoch == trial.best_epoch


def test_trials_validation_views_the_mean_over_views_are_trained_again_to_the_same(
    tmp_path: Path,
) -> None:
    path = tmp_path / "features.h5"
    write_made_features(path, n_views=3)
    plain = run(path, tmp_path, n_trials=4)
    result = run(path, tmp_path, n_trials=4, validation_views="mean_of_views")
    assert result.study_name != plain.study_name
    assert result.trials[0].value != plain.trials[0].value
    best = result.best_head()
    with FeatureStore(path) as store:
        again = _on_split(store, best.config, validation_views=best.validation_views).curve
    assert again.values["log_loss"][best.epochs - 1] == pytest.approx(best.value, rel=1e-4)


def test_every_trial_has_the_same_names(features: Path, tmp_path: Path) -> None:
    result = run(features, tmp_path, metric="macro_f1")
    assert result.direction == "maximize"
    assert {tuple(trial.params) for trial in result.trials} == {tuple(HeadConfig.model_fields)}
    assert {tuple(trial.curve) for trial in result.trials} == {("macro_f1", "log_loss", "accuracy")}
    for trial in result.trials:
        assert trial.value == max(trial.curve["macro_f1"]) == trial.at_best()["macro_f1"]
    table = result.table()
    assert list(table["number"]) == list(range(6))
    assert table["validation_macro_f1"].tolist() == table["value"].tolist()


def test_more_trials_go_on_and_the_same_number_adds_none(features: Path, tmp_path: Path) -> None:
    first = run(features, tmp_path, n_trials=3)
    assert run(features, tmp_path, n_trials=3) == first
    more = run(features, tmp_path, n_trials=5)
    assert more.study_name == first.study_name
    assert more.trials[:3] == first.trials
    assert len(more.trials) == 5
    assert len({str(trial.config) for trial in more.trials}) == 5


@pytest.mark.parametrize("folds", [1, 2])
def test_a_search_knows_nothing_of_the_test_split(
    features: Path, tmp_path: Path, folds: int
) -> None:
    others = tmp_path / "features.h5"
    shutil.copy(features, others)
    with h5py.File(others, "r+") as file:
        rows = np.flatnonzero(file["splits"][...] == b"test")
        assert len(rows) > 20
        for row in rows:
            file["features/made-up/last"][row], file["labels"][row] = np.nan, 0
    known = run(features, tmp_path / "a", n_trials=3, folds=folds)
    assert run(others, tmp_path / "b", n_trials=3, folds=folds).trials == known.trials


def test_a_study_says_what_it_is_of(features: Path, tmp_path: Path) -> None:
    result = run(features, tmp_path, n_trials=1, folds=2)
    assert re.fullmatch(
        r"made-up-log_loss-2-folds-\d-classes-\d+-images-[0-9a-f]{12}", result.study_name
    )
    study = study_of(features, tmp_path, folds=2)
    assert study.metric_names == ["log_loss"]
    assert "value_log_loss" in study.trials_dataframe().columns


def test_what_is_searched_over_names_the_study(features: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.h5"
    write_made_features(other, fingerprint="0" * 64)
    relabelled = tmp_path / "relabelled.h5"
    write_made_features(relabelled, seed=1)

    def name(path: Path = features, seed: int = 0, **changes: Any) -> str:
        with FeatureStore(path) as store:
            return plan_study(store, params(**changes), seed=seed).name

    same = {
        name(),
        name(n_trials=99, timeout_s=1.0, workers=2, sampler="tpe", pruner="none"),
    }
    assert len(same) == 1
    others = {
        name(other),
        name(relabelled),
        name(seed=1),
        name(metric="accuracy"),
        name(folds=3),
        name(repeats=2),
        name(batch_size=16),
        name(patience=5),
        name(default_head={"width": 4}),
        name(space={"width": 8}),
        name(sampler="random"),
        name(sampler="cmaes"),
        name(pruner="median"),
    }
    assert len(others) == 13
    assert not others & same


WILD = {"kind": "network", "optimizer": "sgd", "learning_rate": 100.0, "schedule": "constant"}


def test_failing_trials_do_not_count_and_ten_in_a_row_stop(tmp_path: Path) -> None:
    huge = tmp_path / "huge.h5"
    write_made_features(huge, scale=1e18)
    wild = {**WILD, "normalisation": "none", "hidden_layers": 1}
    with pytest.raises(
        SearchError, match="10 trials in a row failed, the last because a head's loss"
    ):
        run(huge, tmp_path, n_trials=2, space=wild, default_head={**wild, "width": 8})
    study = study_of(huge, tmp_path, n_trials=2, space=wild, default_head={**wild, "width": 8})
    states = [trial.state.name for trial in study.trials if trial.state.is_finished()]
    assert states == ["FAIL"] * 10
    mixed = run(
        huge,
        tmp_path,
        n_trials=2,
        space={**wild, "kind": {"choices": ["network", "logistic_regression"]}},
        default_head={"kind": "logistic_regression", "normalisation": "standardise"},
    )
    assert sum(trial.state == "COMPLETE" for trial in mixed.trials) == 2


def test_pruned_trials_count(features: Path, tmp_path: Path) -> None:
    for pruner in ("median", "hyperband"):
        result = run(
            features,
            tmp_path / pruner,
            n_trials=24,
            pruner=pruner,
            sampler="random",
            patience=20,
            space={"kind": "network", "epochs": 12},
            default_head={"width": 8, "epochs": 12},
        )
        states = [trial.state for trial in result.trials]
        assert len(states) == 24
        assert set(states) == {"COMPLETE", "PRUNED"}
        for trial in result.trials:
            assert (trial.value is None) == (trial.state == "PRUNED")
            assert (len(trial.curve["log_loss"]) < 12) == (trial.state == "PRUNED")


def test_folds_and_repeats(features: Path, tmp_path: Path) -> None:
    result = run(features, tmp_path, n_trials=4, folds=3, repeats=2)
    assert all(trial.value_std and trial.value_std > 0 for trial in result.trials)
    with FeatureStore(features) as store:
        plan = plan_study(store, params(folds=3, repeats=2), seed=0)
        assert len(plan.folds) == 6
        development = len(store.indices("train")) + len(store.indices("validation"))
        assert len(plan.label_ids) == development
        assert plan.judged_rows.tolist() == list(range(development))


def test_a_validation_split_that_came_with_the_data_decides_unless_folds_are_asked_for(
    tmp_path: Path,
) -> None:
    own, given = tmp_path / "own.h5", tmp_path / "given.h5"
    write_made_features(own)
    write_made_features(given, validation_given=True)

    def held_out(path: Path, **changes: Any) -> list[list[int]]:
        with FeatureStore(path) as store:
            plan = plan_study(store, SearchParams(**changes), seed=0)
            assert plan.topic["folds"] == len(plan.folds)
            return [fold.validation.tolist() for fold in plan.folds]

    with FeatureStore(given) as store:
        n_train, n = len(store.indices("train")), len(store.split("train", "validation"))
    assert len(held_out(own)) == len(held_out(given, folds=5)) == 5
    assert held_out(given) == held_out(own, folds=1) == [list(range(n_train, n))]


def test_a_grid_is_searched_whole(features: Path, tmp_path: Path) -> None:
    grid = {
        "kind": "network",
        "hidden_layers": {"choices": [0, 1]},
        "normalisation": {"choices": ["none", "standardise"]},
        "input_dropout": 0.0,
        "dropout": 0.0,
        "learning_rate": {"choices": [0.001, 0.01]},
        "weight_decay": 0.0,
        "label_smoothing": 0.0,
    }
    result = run(features, tmp_path, n_trials=100, sampler="grid", space=grid)
    # the default head, then 2 normalisations x 2 rates x (no hidden layer, or 2 widths)
    assert len(result.trials) == 1 + 2 * 2 * 3
    assert len({str(trial.config) for trial in result.trials}) == len(result.trials)


SMALL_GRID = {
    "kind": "network",
    "hidden_layers": 0,
    "normalisation": {"choices": ["none", "standardise", "layer_norm"]},
    "class_weights": {"choices": ["none", "balanced"]},
    "input_dropout": 0.0,
    "learning_rate": 0.001,
    "weight_decay": 0.0,
    "label_smoothing": 0.0,
}


def test_a_grid_goes_on_when_it_may_be_longer(features: Path, tmp_path: Path) -> None:
    def trials(n_trials: int, **changes: Any) -> tuple[TrialResult, ...]:
        return run(features, tmp_path, n_trials=n_trials, space=SMALL_GRID, **changes).trials

    assert len(trials(2, sampler="grid")) == 2
    assert len(trials(4, sampler="grid")) == 4
    whole = trials(100, sampler="grid")
    # the default head and the grid
    assert len(whole) == 1 + 6
    assert len({str(trial.config) for trial in whole}) == 1 + 6


def test_another_sampler_makes_a_study_of_its_own(features: Path, tmp_path: Path) -> None:
    first = run(features, tmp_path, n_trials=4, sampler="tpe")
    other = run(features, tmp_path, n_trials=4, sampler="random")
    assert other.study_name != first.study_name
    assert [trial.number for trial in other.trials] == [0, 1, 2, 3]
    assert run(features, tmp_path, n_trials=4, sampler="tpe") == first
    reused = run(features, tmp_path, n_trials=2, pruner="median", reuse_trials=True)
    assert {trial.reused_from.split("/")[0] for trial in reused.trials if trial.reused_from} == {
        first.study_name,
        other.study_name,
    }


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes"])
def test_a_space_that_is_exhausted_ends_the_search(
    features: Path, tmp_path: Path, sampler: str
) -> None:
    search = params(sampler=sampler, n_trials=9, space=SMALL_GRID)
    result = run(features, tmp_path, sampler=sampler, n_trials=9, space=SMALL_GRID)
    assert len(result.trials) == len({str(trial.config) for trial in result.trials}) == 1 + 6
    assert "every head of search.space was tried" in summary(result, search)
    few = run(features, tmp_path, sampler=sampler, n_trials=3, space=SMALL_GRID)
    assert few.study_name == result.study_name


def test_a_space_of_one_point_is_tried_once(features: Path, tmp_path: Path) -> None:
    """Fields that do not count for the head, such as the width of none, make no second one."""
    head = {"kind": "network", "hidden_layers": 0, "width": 8, "epochs": 4}
    search = SearchParams.model_validate({**BASE, "n_trials": 5, "default_head": head, "space": {}})
    with FeatureStore(features) as store:
        result = run_study(store, search, seed=0, storage_folder=tmp_path)
    assert [trial.config for trial in result.trials] == [search.default_head]
    assert summary(result, search).startswith("1 trials, best log_loss")
    assert "every head of search.space was tried" in summary(result, search)


@pytest.mark.parametrize("sampler", ["grid", "random", "tpe"])
@pytest.mark.parametrize(
    "point",
    [
        {"input_dropout": {"low": 0.1, "high": 0.1}},
        {"input_dropout": {"low": 0.1, "high": 0.1, "step": 0.1}},
        {"learning_rate": {"low": 0.01, "high": 0.01, "log": True}},
        {"epochs": {"low": 3, "high": 3, "log": True}},
    ],
    ids=("range", "step", "log", "whole"),
)
def test_a_range_of_one_point_is_one_value(
    features: Path, tmp_path: Path, sampler: str, point: dict[str, Any]
) -> None:
    head = {"kind": "network", "hidden_layers": 0, "epochs": 4}
    search = SearchParams.model_validate(
        {**BASE, "n_trials": 5, "default_head": head, "space": point, "sampler": sampler}
    )
    with FeatureStore(features) as store:
        result = run_study(store, search, seed=0, storage_folder=tmp_path)
    assert len(result.trials) == len({str(trial.config) for trial in result.trials}) == 2


@pytest.mark.parametrize("sampler", ["grid", "random"])
@pytest.mark.parametrize("step", [1e-5, 1e-7])
def test_a_huge_grid_begins_at_once(
    features: Path, tmp_path: Path, sampler: str, step: float
) -> None:
    """Nothing is made for each value: 26 s were needed for 90,001, and for 9 million no end."""
    wide = {"input_dropout": {"low": 0.0, "high": 0.9, "step": step}}
    space = {**SMALL_GRID, "class_weights": "none", **wide}
    changes: dict[str, Any] = {"sampler": sampler, "n_trials": 4, "space": space}
    started = time.monotonic()
    result = run(features, tmp_path, **changes)
    # the bound is generous: a search so small takes about 3 s
    assert time.monotonic() - started < 20
    assert len({trial.config for trial in result.trials}) == 4
    rates = sorted(t.config.input_dropout for t in result.trials[1:] if t.config is not None)
    assert rates[-1] - rates[0] > 0.2, "the first heads of a grid are spread over it"


@pytest.mark.parametrize("sampler", ["random", "cmaes"])
def test_other_samplers(features: Path, tmp_path: Path, sampler: str) -> None:
    result = run(features, tmp_path, sampler=sampler)
    assert len({str(trial.config) for trial in result.trials}) == 6


def test_no_trial_begins_after_the_time_is_up(features: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    result = run(features, tmp_path, n_trials=1_000_000, timeout_s=1.0)
    assert 1 <= len(result.trials) < 100_000
    assert time.monotonic() - started > 1


def test_old_trials_are_added_on_request(features: Path, tmp_path: Path) -> None:
    old = run(features, tmp_path, n_trials=12, sampler="random")
    wider = {"width": {"choices": [4, 8, 16]}, "dropout": {"low": 0.0, "high": 0.3, "step": 0.1}}
    fresh = run(features, tmp_path, n_trials=4, space=wider)
    assert not any(trial.reused_from for trial in fresh.trials)
    space = {**wider, "dropout": {"low": 0.0, "high": 0.4, "step": 0.1}}
    result = run(features, tmp_path, n_trials=4, space=space, reuse_trials=True)
    reused = [trial for trial in result.trials if trial.reused_from]
    own = [trial for trial in result.trials if not trial.reused_from]
    assert len(own) == 4
    assert own[0].number == 0
    assert reused
    for trial in reused:
        study, number = trial.reused_from.split("/")
        origin = {old.study_name: old, fresh.study_name: fresh}[study].trials[int(number)]
        assert (trial.value, trial.config, trial.curve) == (
            origin.value,
            origin.config,
            origin.curve,
        )
    again = run(features, tmp_path, seed=1, n_trials=2, space=space, reuse_trials=True)
    assert not any(trial.reused_from for trial in again.trials)


def test_a_database_holds_it_too(features: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/own.db"
    result = run(features, tmp_path, storage=url, n_trials=4)
    assert run(features, tmp_path, n_trials=4).trials == result.trials
    assert result.storage == url


def test_the_metric_must_fit_the_classes(tmp_path: Path) -> None:
    path = tmp_path / "three.h5"
    write_made_features(path, n_classes=3)
    with pytest.raises(SearchError, match="for 3 classes, but got top_3_accuracy"):
        run(path, tmp_path, metric="top_3_accuracy")


def test_by_default_sets_of_blocks_are_tried_with_ridge(tmp_path: Path) -> None:
    blocks = {"head": slice(0, 12), "stage6": slice(12, 18), "stage5": slice(18, 24)}
    path = tmp_path / "features.h5"
    write_made_features(path, blocks=blocks)
    with FeatureStore(path) as store:
        result = run_study(store, SearchParams(n_trials=50), seed=0, storage_folder=tmp_path)
        again = run_study(store, SearchParams(n_trials=50), seed=0, storage_folder=tmp_path)
    heads = [(t.config.kind, t.config.layers) for t in result.trials if t.config]
    assert heads[:2] == [("logistic_regression", "last"), ("ridge", "all")]
    sets = ["stage6", "stage5", "head+stage6", "head+stage5", "stage6+stage5"]
    assert sorted(heads[1:]) == sorted(("ridge", name) for name in ("last", "all", *sets))
    assert again == result, "every set was tried"
    best = result.best_head()
    assert best.folds == 5
    assert best.estimate is not None
    assert best.estimate <= best.value + 1e-9
    assert best.config.kind != "ridge" or best.config.penalty in RIDGE_PENALTIES


def test_what_would_make_a_search_shorter() -> None:
    fewer = "fewer search.n_trials, or search.timeout_s"
    folds = "fewer search.folds or search.repeats"
    assert faster_search(SearchParams()) == f"{fewer}; {folds}"
    assert faster_search(SearchParams(folds=1)) == fewer
    networks = SearchParams.model_validate(
        {"space": {"kind": {"choices": ["ridge", "network"]}}, "folds": 2}
    )
    assert faster_search(networks) == (
        f"{fewer}; ridge in place of networks (search.space.kind: ridge)"
    )
    assert faster_search(SearchParams(workers=2)) == ""
