"""A worker of a study: it asks for trials, trains their heads, and tells how good they are."""

import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.trial import TrialState

from headstart.common.errors import SearchError, TrainingError, one_line
from headstart.common.progress import progress_bar
from headstart.heads.config import HeadConfig
from headstart.heads.curve import Curve
from headstart.heads.metrics import softmax
from headstart.heads.trainer import CrossValidation, HeadTrainer, mean_by_row
from headstart.params.search import SearchParams
from headstart.search.plan import StudyPlan, excess
from headstart.search.selection import AnswerStore
from headstart.search.space import asking, extremes, known_fields, suggest
from headstart.search.study import (
    HEAD,
    HEARTBEAT_S,
    MFLOPS,
    MODEL_MB,
    REASON,
    RESULT,
    WORKER,
    WorkerLock,
    has_next,
    make_sampler,
    missing,
    open_storage,
    open_study,
    study_lock,
)

MOST_FAILURES = 10


class Worker:
    """One of the workers of a study.

    A trial that another worker has failed meanwhile, taking this one for dead, is retried there;
    what is told of it here is dropped.

    Args:
        stream: differs among the workers of one search, so that their samplers do.
    """

    def __init__(
        self, plan: StudyPlan, search: SearchParams, folder: Path, *, seed: int, stream: int = 0
    ) -> None:
        self._plan, self._search = plan, search
        self._storage = open_storage(search, folder)
        self._lock = study_lock(folder, plan.name)
        self._own_lock = WorkerLock(folder / f"{plan.name}.workers")
        self._answers = AnswerStore(folder, plan.name)
        with self._lock:
            self.study = open_study(plan, search, self._storage, self._own_lock)
            n_before = len(self.study.get_trials(deepcopy=False))
        seeds = np.random.SeedSequence([seed, n_before, stream])
        self.study.sampler = make_sampler(search, int(seeds.generate_state(1)[0]))

    def close(self) -> None:
        """Leave the study; trials left running count as those of a dead worker."""
        self._own_lock.release()

    def wants_more(self) -> bool:
        """Whether a worker that asks now is given a trial."""
        with self._lock:
            return missing(self.study, self._search) > 0 and has_next(self.study, self._search)

    def has_running(self) -> bool:
        """Whether some worker has a trial in work."""
        return bool(self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))

    def run(self, deadline: float) -> None:
        """Work until the study has enough trials; begin none after `deadline`.

        Raises:
            SearchError: ten trials in a row failed.
        """
        plan, search, failures = self._plan, self._search, 0
        trainer = HeadTrainer(
            plan.features,
            plan.label_ids,
            plan.n_classes,
            plan.blocks,
            batch_size=search.batch_size,
            metric=search.metric,
            validation_views=search.validation_views,
        )
        with self._lock:
            total = max(missing(self.study, search), 0)
        with progress_bar(
            total=total, unit="trials", title="search", faster=faster_search(search)
        ) as bar:
            while time.monotonic() < deadline and (asked := self.ask()) is not None:
                trial, config = asked
                if over := excess(search, plan.cost(config)):
                    self.skip(trial, config, over)
                    bar.update(1)
                    continue
                try:
                    with self._heartbeats(trial):
                        self._run_trial(trainer, trial, config)
                except (TrainingError, ValueError, np.linalg.LinAlgError) as error:
                    self.fail(trial, config, one_line(error))
                    failures += 1
                    if failures >= MOST_FAILURES:
                        raise SearchError(
                            f"{MOST_FAILURES} trials in a row failed, the last because "
                            f"{one_line(error)}: look at search.space, first at learning_rate"
                        ) from None
                    continue
                failures = 0
                bar.update(1)

    def ask(self) -> tuple[optuna.Trial, HeadConfig] | None:
        """The next trial and its head; None where the finished and the running ones are enough."""
        with self._lock:
            if missing(self.study, self._search) <= 0 or not has_next(self.study, self._search):
                return None
            with warnings.catch_warnings():
                # Optuna expects heartbeats of its own loop; here `_heartbeats` sends them.
                warnings.filterwarnings("ignore", "Heartbeat of storage", UserWarning)
                trial = self.study.ask()
            trial.set_user_attr(WORKER, self._own_lock.name)
            # A trial without any heartbeat would never count as stale.
            self._record_heartbeat(trial)
        given = trial.user_attrs.get(HEAD)
        if given is None:
            return trial, suggest(self._search.space, asking(trial))
        config = HeadConfig.model_validate(given)
        choose = asking(trial)
        for name in known_fields(self._search.space, config):
            choose(name, getattr(self._search.space, name))  # so that the sampler sees it
        return trial, config

    def tell(
        self, trial: optuna.Trial, found: CrossValidation, state: TrialState | None = None
    ) -> None:
        """Tell what a trial has found; `state` PRUNED where it was given up."""
        curve, best = found.curve, found.curve.best_epoch
        result: dict[str, Any] = {
            "config": found.config.model_dump(mode="json"),
            "best_epoch": best,
            "value_std": curve.spread[best - 1],
            "curve": curve.values,
        }
        cost = self._plan.cost(found.config)
        with suppress(UpdateFinishedTrialError):
            trial.set_user_attr(RESULT, result)
            if cost is not None:
                trial.set_user_attr(MFLOPS, cost.mflops)
                trial.set_user_attr(MODEL_MB, cost.megabytes)
            value = None if state else curve.objective
            self.study.tell(trial, value, state=state, skip_if_finished=True)

    def fail(self, trial: optuna.Trial, config: HeadConfig, reason: str) -> None:
        """Tell that a trial has failed."""
        self._end(trial, config, reason, TrialState.FAIL)

    def skip(self, trial: optuna.Trial, config: HeadConfig, reason: str) -> None:
        """Tell that a head was not trained; to a sampler it is as bad as any."""
        self._end(trial, config, reason, TrialState.PRUNED)

    def _end(self, trial: optuna.Trial, config: HeadConfig, reason: str, state: TrialState) -> None:
        with suppress(UpdateFinishedTrialError):
            trial.set_user_attr(RESULT, {"config": config.model_dump(mode="json")})
            trial.set_user_attr(REASON, reason)
            self.study.tell(trial, state=state, skip_if_finished=True)

    def _run_trial(self, trainer: HeadTrainer, trial: optuna.Trial, config: HeadConfig) -> None:
        plan, search, is_pruned = self._plan, self._search, False

        def on_epoch(curve: Curve) -> bool:
            nonlocal is_pruned
            if search.pruner == "none" or config.kind != "network":
                return False  # a report is a transaction; the curve is kept with the result
            with suppress(UpdateFinishedTrialError):
                trial.report(curve.values[search.metric][-1], curve.epochs)
            is_last = curve.epochs >= config.epochs or curve.stalled(search.patience)
            is_pruned = not is_last and trial.should_prune()
            return is_pruned

        found = trainer.cross_validate(
            config, plan.folds, patience=search.patience, path=True, on_epoch=on_epoch
        )
        if is_pruned:
            self.tell(trial, found, TrialState.PRUNED)
            return
        _, logits = mean_by_row(plan.folds, found.logits)
        self._answers.write(trial.number, softmax(logits).astype(np.float32))
        self.tell(trial, found)

    @contextmanager
    def _heartbeats(self, trial: optuna.Trial) -> Iterator[None]:
        """Tell a database meanwhile that this worker lives."""
        if self._storage.get_heartbeat_interval() is None:
            yield
            return
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(HEARTBEAT_S):
                self._record_heartbeat(trial)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _record_heartbeat(self, trial: optuna.Trial) -> None:
        storage = self._storage
        if storage.get_heartbeat_interval() is None:
            return  # the file of this machine, where locks tell who lives
        study_id = storage.get_study_id_from_name(self._plan.name)
        trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            storage.record_heartbeat(trial_id)


def faster_search(search: SearchParams) -> str:
    """What would make a search shorter; docs/measurements.md has by how much.

    Nothing of several workers, each of which knows its own trials alone.
    """
    if search.workers > 1:
        return ""
    ways = ["fewer search.n_trials, or search.timeout_s"]
    if "network" in extremes(search.space, "kind"):
        ways.append("ridge in place of networks (search.space.kind: ridge)")
    if (search.folds or 5) > 2 or search.repeats > 1:
        ways.append("fewer search.folds or search.repeats")
    return "; ".join(ways)
