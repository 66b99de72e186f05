"""The search for the best head over cached features: an Optuna study whose trials share a stack.

Knows nothing of DVC, MLflow and params.yaml's file.
"""

import itertools
import os
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from headstart.common.errors import SearchError
from headstart.common.progress import begin_step
from headstart.features.feature_store import FeatureStore
from headstart.heads.config import BestHead, HeadConfig
from headstart.heads.curve import curve_metrics
from headstart.heads.metrics import DIRECTION, badness
from headstart.params.search import SearchParams
from headstart.search.plan import StudyPlan, plan_study, with_blocks
from headstart.search.selection import AnswerStore, corrected_estimate
from headstart.search.storage import journal_path, open_storage, study_exists
from headstart.search.study import REASON, RESULT, REUSED
from headstart.search.trials import Trials
from headstart.search.workers import deadline_of, work, work_together

_POLL_S = 2.0


@dataclass(frozen=True)
class TrialResult:
    """One trial that has ended.

    Attributes:
        number: in the order in which trials were asked for, from 0.
        state: COMPLETE, PRUNED or FAIL.
        config: the head; None where a trial failed before it had one.
        value: the metric at the best epoch, mean over folds and repeats; None unless COMPLETE.
        value_std: sample standard deviation over folds and repeats; 0 where there is one.
        best_epoch: from 1.
        first_epoch: where in the study's row orders it began.
        curve: by metric, one value an epoch; the same metrics in every trial.
        reason: why it failed.
        reused_from: study and number of the trial that this one was taken from, or empty.
    """

    number: int
    state: str
    config: HeadConfig | None
    value: float | None
    value_std: float | None
    best_epoch: int | None
    first_epoch: int | None
    curve: dict[str, list[float]]
    reason: str
    reused_from: str

    @property
    def params(self) -> dict[str, Any]:
        """Every field of the head, the same names for every trial."""
        config = self.config
        names = HeadConfig.model_fields
        return {name: None if config is None else getattr(config, name) for name in names}

    def at_best(self) -> dict[str, float]:
        """The curve's metrics at the best epoch."""
        if not self.best_epoch:
            return {}
        return {name: values[self.best_epoch - 1] for name, values in self.curve.items()}


@dataclass(frozen=True)
class StudyResult:
    """A study so far: every trial that has ended, by number.

    Attributes:
        storage: what Optuna and its dashboard open: a path of a journal file, or a URL.
        topic: what the study's name covers.
        estimate: what the best trial's value may be expected to be on new images.
    """

    study_name: str
    storage: str
    metric: str
    direction: str
    batch_size: int
    topic: dict[str, Any]
    trials: tuple[TrialResult, ...]
    estimate: float | None = None

    @property
    def best(self) -> TrialResult:
        """The first of `ranked`."""
        return self.ranked()[0]

    def ranked(self) -> list[TrialResult]:
        """The completed trials, best first; of equal ones that with the least log loss."""
        done = [trial for trial in self.trials if trial.value is not None]
        return sorted(done, key=lambda t: (badness(self.metric, t.at_best()), t.number))

    def best_head(self) -> BestHead:
        """The winner, as data/best_head.json holds it."""
        best = self.best
        assert best.config is not None
        assert best.value is not None
        return BestHead(
            config=best.config,
            epochs=best.best_epoch or 1,
            metric=self.metric,
            value=best.value,
            study=self.study_name,
            trial=best.number,
            batch_size=self.batch_size,
            first_epoch=best.first_epoch or 0,
            judged_on=self.topic["judged_on"],
            folds=self.topic["folds"],
            estimate=self.estimate,
        )

    def table(self) -> pd.DataFrame:
        """One row a trial: outcome, metrics at the best epoch, every field of the head."""
        metrics = curve_metrics(self.metric)
        rows = [
            {
                "number": trial.number,
                "state": trial.state,
                "value": trial.value,
                "value_std": trial.value_std,
                "best_epoch": trial.best_epoch,
                "epochs": len(trial.curve.get(self.metric, [])),
                "first_epoch": trial.first_epoch,
                **{f"validation_{name}": trial.at_best().get(name) for name in metrics},
                **trial.params,
                "reason": trial.reason,
                "reused_from": trial.reused_from,
            }
            for trial in self.trials
        ]
        whole = ("best_epoch", "first_epoch", "hidden_layers", "width")
        return pd.DataFrame(rows).astype(dict.fromkeys(whole, "Int64"))


def run_study(
    store: FeatureStore, search: SearchParams, *, seed: int, storage_folder: Path
) -> StudyResult:
    """Search until the study has `search.n_trials` finished trials; go on with an old one.

    Waits for trials that others run; those of a worker that dies are made again here.

    Raises:
        SearchError: the search cannot start or go on, or no trial completed.
    """
    search = with_blocks(search, store.layers)
    plan = plan_study(store, search, seed=seed, folder=storage_folder)
    deadline = deadline_of(search)
    for turn in itertools.count():
        # The study exists, and is mended of what dead workers left, before any worker starts.
        with closing(Trials(plan, search, storage_folder, seed=seed)) as trials:
            is_wanted, is_others_turn = trials.wants_more(), trials.has_running()
        if turn and time.monotonic() >= deadline:
            break
        if is_wanted and search.workers > 1 and turn == 0:
            begin_step(f"{search.workers} workers train heads")
            work_together(store.path, search, storage_folder, seed=seed, deadline=deadline)
        elif is_wanted:
            # Samples of its own, unlike those of the workers and of earlier turns.
            stream = search.workers + turn if turn else 0
            work(plan, search, storage_folder, seed=seed, stream=stream, deadline=deadline)
        elif is_others_turn:
            begin_step("waiting for trials of other workers")
            time.sleep(_POLL_S)
        else:
            break
    result = read_study(plan, search, storage_folder)
    if all(trial.value is None for trial in result.trials):
        raise SearchError(
            "a search needs a completed trial to choose from, but none completed: "
            "raise search.timeout_s or search.n_trials, or look at the reasons in the study"
        )
    return result


def join_study(
    store: FeatureStore, search: SearchParams, *, seed: int, storage_folder: Path
) -> StudyResult:
    """Be one more worker of a study that has begun, until others have or run enough trials.

    The result may lack a completed trial, where the others have not come that far.

    Raises:
        SearchError: there is no such study, or it cannot go on.
    """
    search = with_blocks(search, store.layers)
    plan = plan_study(store, search, seed=seed, folder=storage_folder)
    if not study_exists(search.storage, storage_folder, plan.name):
        raise SearchError(
            f"joining needs a study that has begun, but there is no {plan.name} in "
            f"{search.storage or storage_folder}: start `dvc repro search` first, "
            "with the same params.yaml"
        )
    stream = 1000 + os.getpid()
    work(plan, search, storage_folder, seed=seed, stream=stream, deadline=deadline_of(search))
    return read_study(plan, search, storage_folder)


def read_study(plan: StudyPlan, search: SearchParams, folder: Path) -> StudyResult:
    """What a study has found so far; reused trials count, as if they were its own."""
    storage = open_storage(search.storage, folder, plan.name)
    study = optuna.load_study(study_name=plan.name, storage=storage)
    ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    done = [trial.number for trial in ended if trial.state is TrialState.COMPLETE]
    rows = plan.judged_rows
    estimate = corrected_estimate(
        search.metric,
        plan.label_ids[rows],
        [plan.keys[row] for row in rows],
        AnswerStore(folder, plan.name).read(done),
        seed=int(plan.topic["seed"]),
    )
    return StudyResult(
        study_name=plan.name,
        storage=search.storage or str(journal_path(folder, plan.name)),
        metric=search.metric,
        direction=DIRECTION[search.metric],
        batch_size=search.batch_size,
        topic=plan.topic,
        trials=tuple(_trial_result(trial) for trial in sorted(ended, key=lambda t: t.number)),
        estimate=estimate,
    )


def _trial_result(trial: FrozenTrial) -> TrialResult:
    result = trial.user_attrs.get(RESULT, {})
    completed = trial.state is TrialState.COMPLETE
    return TrialResult(
        number=trial.number,
        state=trial.state.name,
        config=HeadConfig.model_validate(result["config"]) if "config" in result else None,
        value=trial.value if completed else None,
        value_std=result.get("value_std"),
        best_epoch=result.get("best_epoch"),
        first_epoch=result.get("first_epoch"),
        curve=result.get("curve", {}),
        reason=trial.user_attrs.get(REASON, ""),
        reused_from=trial.user_attrs.get(REUSED, ""),
    )
