"""What a study has found: its trials, their ranking, and what the best may be expected to be."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from headstart.heads.config import BestHead, EnsembleMember, HeadConfig, HeadEnsemble
from headstart.heads.curve import curve_metrics
from headstart.heads.metrics import DIRECTION, METRICS, objective
from headstart.params.search import SearchParams
from headstart.search.ensemble import choose_ensemble
from headstart.search.plan import StudyPlan, excess
from headstart.search.selection import AnswerStore, Corrected, correct_for_selection
from headstart.search.study import (
    MFLOPS,
    MODEL_MB,
    REASON,
    RESULT,
    REUSED,
    open_storage,
    storage_url,
)

_CHEAPER = 0.99


@dataclass(frozen=True)
class TrialResult:
    """One trial that has ended.

    Attributes:
        number: in the order in which trials were asked for, from 0.
        state: COMPLETE, PRUNED or FAIL.
        config: the head; None where a trial failed before it had one.
        value: the metric at the best epoch, mean over folds and repeats; None unless COMPLETE.
            Optuna's value of the trial is the same, its ties broken (`metrics.objective`).
        value_std: sample standard deviation over folds and repeats; 0 where there is one.
        best_epoch: from 1.
        curve: by metric, one value an epoch; the same metrics in every trial.
        reason: why it failed, or was not trained.
        reused_from: study and number of the trial that this one was taken from, or empty.
        mflops, model_mb: the cost of the model, millions of operations an image and megabytes of
            weights; None where it is not known.
    """

    number: int
    state: str
    config: HeadConfig | None
    value: float | None
    value_std: float | None
    best_epoch: int | None
    curve: dict[str, list[float]]
    reason: str
    reused_from: str
    mflops: float | None = None
    model_mb: float | None = None

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
        storage: the URL that Optuna and its dashboard open.
        topic: what the study's name covers.
        corrected: what the best trial may be expected to do on new images.
        ensemble: of trials, and how much better than the best one it is.
    """

    study_name: str
    storage: str
    metric: str
    direction: str
    batch_size: int
    topic: dict[str, Any]
    trials: tuple[TrialResult, ...]
    corrected: Corrected | None = None
    ensemble: HeadEnsemble | None = None

    @property
    def best(self) -> TrialResult:
        """The first of `ranked`."""
        return self.ranked()[0]

    @property
    def estimate(self) -> float | None:
        """What the best trial's value may be expected to be on new images."""
        return self.corrected.estimate if self.corrected else None

    def ranked(self) -> list[TrialResult]:
        """The completed trials, best first: by the number that the study optimises."""
        done = [trial for trial in self.trials if trial.value is not None]
        sign = -1 if self.direction == "maximize" else 1
        return sorted(done, key=lambda t: (sign * objective(self.metric, t.at_best()), t.number))

    def pareto_front(self) -> list[TrialResult]:
        """The trials than which none is as good and at least 1 % cheaper, the cheapest first.

        Less than that is what heads on the same blocks differ by.
        """
        front: list[TrialResult] = []
        least = float("inf")
        for trial in self.ranked():
            if trial.mflops is not None and trial.mflops < _CHEAPER * least:
                front.append(trial)
                least = trial.mflops
        return front[::-1]

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
            validation_views=self.topic["validation_views"],
            folds=self.topic["folds"],
            estimate=self.estimate,
            optimism=self.corrected.optimism if self.corrected else 0.0,
            ensemble=self.ensemble,
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
                **{f"validation_{name}": trial.at_best().get(name) for name in metrics},
                "mflops": trial.mflops,
                "model_mb": trial.model_mb,
                **trial.params,
                "reason": trial.reason,
                "reused_from": trial.reused_from,
            }
            for trial in self.trials
        ]
        whole = ("best_epoch", "hidden_layers", "width")
        return pd.DataFrame(rows).astype(dict.fromkeys(whole, "Int64"))


def read_study(plan: StudyPlan, search: SearchParams, folder: Path) -> StudyResult:
    """What a study has found so far; reused trials count, as if they were its own."""
    study = optuna.load_study(study_name=plan.name, storage=open_storage(search, folder))
    ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    done = [trial.number for trial in ended if trial.state is TrialState.COMPLETE]
    rows, seed = plan.judged_rows, int(plan.topic["seed"])
    label_ids, groups = plan.label_ids[rows], [plan.keys[row] for row in rows]
    answers = AnswerStore(folder, plan.name).read(done)
    corrected = correct_for_selection(search.metric, label_ids, groups, answers, seed=seed)
    result = StudyResult(
        study_name=plan.name,
        storage=storage_url(search, folder),
        metric=search.metric,
        direction=DIRECTION[search.metric],
        batch_size=search.batch_size,
        topic=plan.topic,
        trials=tuple(_trial_result(trial, search.metric) for trial in ended),
        corrected=corrected,
    )
    heads = {
        trial.number: (trial.config, trial.best_epoch or 1)
        for trial in result.ranked()
        if trial.config is not None and _may_join(trial.config, plan)
    }
    ensemble = choose_ensemble(label_ids, groups, answers, list(heads), seed=seed)
    if ensemble is None or not ensemble.is_better:
        return result
    if excess(search, plan.cost(*(heads[number][0] for number in ensemble.members))):
        return result
    seen = label_ids[ensemble.rows]
    accuracy = float(METRICS["accuracy"](seen, ensemble.answers))
    found = HeadEnsemble(
        members=tuple(
            EnsembleMember(
                config=heads[number][0], epochs=heads[number][1], times=times, trial=number
            )
            for number, times in ensemble.members.items()
        ),
        estimate=float(METRICS[search.metric](seen, ensemble.answers)),
        optimism=max(0.0, ensemble.own_accuracy - accuracy),
        gain=ensemble.gain,
        error=ensemble.error,
    )
    return replace(result, ensemble=found)


def _may_join(config: HeadConfig, plan: StudyPlan) -> bool:
    """Whether a head may stand beside heads of other blocks: their features are joined in one row.

    Columns that a head does not use get weights of zero; to normalise a row needs its own columns.
    """
    normalises_rows = config.kind != "ridge" and config.normalisation == "layer_norm"
    return len(plan.blocks) == 1 or not normalises_rows


def _trial_result(trial: FrozenTrial, metric: str) -> TrialResult:
    result = trial.user_attrs.get(RESULT, {})
    curve, best = result.get("curve", {}), result.get("best_epoch")
    is_complete = trial.state is TrialState.COMPLETE and best
    reason = trial.user_attrs.get(REASON, "")
    if trial.state is TrialState.FAIL and not reason:
        reason = "its worker died"
    return TrialResult(
        number=trial.number,
        state=trial.state.name,
        config=HeadConfig.model_validate(result["config"]) if "config" in result else None,
        value=curve[metric][best - 1] if is_complete else None,
        value_std=result.get("value_std"),
        best_epoch=best,
        curve=curve,
        reason=reason,
        reused_from=trial.user_attrs.get(REUSED, ""),
        mflops=trial.user_attrs.get(MFLOPS),
        model_mb=trial.user_attrs.get(MODEL_MB),
    )
