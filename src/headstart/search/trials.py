"""The trials of a study as one worker sees them: asked for, and told how they ended."""

import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from headstart.heads.config import HeadConfig
from headstart.params.search import SearchParams
from headstart.search.life import LifeLine
from headstart.search.plan import StudyPlan
from headstart.search.sampling import is_enumerated, make_sampler
from headstart.search.space import asking, grid, known_fields, suggest
from headstart.search.storage import HEARTBEAT_S, has_heartbeats, study_lock
from headstart.search.study import (
    HEAD,
    REASON,
    RESULT,
    REUSED,
    WORKER,
    enqueue,
    heads_of,
    open_study,
)

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class AskedTrial:
    """A trial in work: its number and its head."""

    trial: optuna.Trial
    config: HeadConfig

    @property
    def number(self) -> int:
        return int(self.trial.number)


class Trials:
    """A worker's side of a study.

    A trial that another worker has failed meanwhile, taking this one for dead, is asked for again
    there; what is told of it here is dropped.

    `stream` tells the workers of one search apart, so that their samplers do not propose the same.
    """

    def __init__(
        self, plan: StudyPlan, search: SearchParams, folder: Path, *, seed: int, stream: int = 0
    ) -> None:
        self._search = search
        self._lock = study_lock(folder, plan.name)
        self._life = LifeLine(folder / f"{plan.name}.workers")
        self._beat = time.monotonic()
        with self._lock:
            self.study = open_study(plan, search, folder, self._life)
            n_before = len(self.study.get_trials(deepcopy=False))
        self._grid = grid(search.space) if is_enumerated(search) else None
        self._next: HeadConfig | None = next(self._grid, None) if self._grid else None
        self._tried: set[HeadConfig] = set()
        self._n_read = 0
        seeds = np.random.SeedSequence([seed, n_before, stream])
        self.study.sampler = make_sampler(search, int(seeds.generate_state(1)[0]))

    def ask(self) -> AskedTrial | None:
        """The next trial, or None where the finished and the running ones are enough."""
        with self._lock:
            if not self.wants_more():
                return None
            if self._grid is not None and not self._has_waiting():
                assert self._next is not None
                enqueue(self.study, self._search, self._next)
            with warnings.catch_warnings():
                # Optuna expects heartbeats of its own loop; here `beat` sends them.
                warnings.filterwarnings("ignore", "Heartbeat of storage", UserWarning)
                trial = self.study.ask()
            trial.set_user_attr(WORKER, self._life.name)
            # A trial without any heartbeat never counts as stale.
            self._record_heartbeat(trial)
        given = trial.user_attrs.get(HEAD)
        if given is None:
            config = suggest(self._search.space, asking(trial))
        else:
            config = HeadConfig.model_validate(given)
            _record(trial, self._search, config)
        return AskedTrial(trial, config)

    def wants_more(self) -> bool:
        """Whether a worker that asks now is given a trial."""
        return self.missing() > 0 and (
            self._grid is None or self._has_waiting() or not self._is_grid_done()
        )

    def _has_waiting(self) -> bool:
        return bool(self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def _is_grid_done(self) -> bool:
        """Go to the grid's first head that the study has not had; whether there is none."""
        assert self._grid is not None
        trials = self.study.get_trials(deepcopy=False)
        self._tried.update(heads_of(trials[self._n_read :]))
        self._n_read = len(trials)
        while self._next is not None and self._next in self._tried:
            self._next = next(self._grid, None)
        return self._next is None

    def has_running(self) -> bool:
        """Whether some worker has a trial in work."""
        return bool(self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))

    def missing(self) -> int:
        """How many more trials the study needs, beside those that run."""
        trials = self.study.get_trials(deepcopy=False, states=(*FINISHED, TrialState.RUNNING))
        return self._search.n_trials - sum(REUSED not in trial.user_attrs for trial in trials)

    def report(self, asked: AskedTrial, value: float, epoch: int) -> None:
        """Tell how good a trial is after an epoch."""
        with suppress(UpdateFinishedTrialError):
            asked.trial.report(value, epoch)

    def complete(self, asked: AskedTrial, value: float, result: dict[str, Any]) -> None:
        """Tell that a trial has ended with a value."""
        with suppress(UpdateFinishedTrialError):
            asked.trial.set_user_attr(RESULT, result)
            self.study.tell(asked.trial, value, skip_if_finished=True)

    def prune(self, asked: AskedTrial, result: dict[str, Any]) -> None:
        """Tell that a trial was given up."""
        with suppress(UpdateFinishedTrialError):
            asked.trial.set_user_attr(RESULT, result)
            self.study.tell(asked.trial, state=TrialState.PRUNED, skip_if_finished=True)

    def fail(self, asked: AskedTrial, reason: str) -> None:
        """Tell that a trial has failed."""
        with suppress(UpdateFinishedTrialError):
            asked.trial.set_user_attr(RESULT, {"config": asked.config.model_dump(mode="json")})
            asked.trial.set_user_attr(REASON, reason)
            self.study.tell(asked.trial, state=TrialState.FAIL, skip_if_finished=True)

    def beat(self, running: list[AskedTrial]) -> None:
        """Tell a database now and then that this worker's trials are alive."""
        if time.monotonic() - self._beat > HEARTBEAT_S:
            self._beat = time.monotonic()
            for asked in running:
                self._record_heartbeat(asked.trial)

    def _record_heartbeat(self, trial: optuna.Trial) -> None:
        storage: BaseStorage = self.study._storage
        if has_heartbeats(storage):
            storage.record_heartbeat(trial._trial_id)

    def close(self) -> None:
        """Leave the study; trials left running count as those of a dead worker."""
        self._life.release()


def _record(trial: optuna.Trial, search: SearchParams, head: HeadConfig) -> None:
    """Let the sampler see the fields of a given head that the space asks for."""
    choose = asking(trial)
    for name in known_fields(search.space, head):
        choose(name, getattr(search.space, name))
