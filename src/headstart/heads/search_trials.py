"""The trials of a study: opened or gone on with, asked for, and told how they ended.

Safe against kills at any moment: a trial belongs to a worker that holds a lock file while it
lives, and trials of dead workers are failed and their heads asked for again, once.
"""

import importlib.util
import os
import socket
import uuid
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from filelock import BaseFileLock, FileLock, Timeout
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState

from headstart.errors import SearchError
from headstart.heads.config import HeadConfig
from headstart.heads.metrics import DIRECTION
from headstart.heads.search_plan import StudyPlan
from headstart.heads.search_space import asking, grid, is_in_space, known_fields, suggest
from headstart.heads.search_storage import open_storage, study_lock
from headstart.params.search import SearchParams

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
HEAD, WORKER, RESULT, REASON, AGAIN = "head", "worker", "result", "reason", "again_of"
_READY = "ready"


@dataclass(frozen=True)
class AskedTrial:
    """A trial in work: its number and its head."""

    trial: optuna.Trial
    config: HeadConfig

    @property
    def number(self) -> int:
        return int(self.trial.number)


class Trials:
    """A worker's side of a study."""

    def __init__(self, plan: StudyPlan, search: SearchParams, folder: Path, seed: int) -> None:
        self._search = search
        self._folder = folder
        self._name = plan.name
        self._lock = study_lock(folder, plan.name)
        self._worker = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._alive = self._hold_life_line()
        with self._lock:
            self.study = self._open(plan, seed)

    def ask(self) -> AskedTrial | None:
        """The next trial, or None where the finished and the running ones are enough."""
        with self._lock:
            if self._missing() <= 0:
                return None
            trial = self.study.ask()
            trial.set_user_attr(WORKER, self._worker)
        given = trial.user_attrs.get(HEAD)
        if given is None:
            config = suggest(self._search.space, asking(trial))
        else:
            config = HeadConfig.model_validate(given)
            _record(trial, self._search, config)
        return AskedTrial(trial, config)

    def complete(self, asked: AskedTrial, value: float, result: dict[str, Any]) -> None:
        """Tell that a trial has ended with a value."""
        asked.trial.set_user_attr(RESULT, result)
        self.study.tell(asked.trial, value)

    def prune(self, asked: AskedTrial, result: dict[str, Any]) -> None:
        """Tell that a trial was given up."""
        asked.trial.set_user_attr(RESULT, result)
        self.study.tell(asked.trial, state=TrialState.PRUNED)

    def fail(self, asked: AskedTrial, reason: str) -> None:
        """Tell that a trial has failed."""
        asked.trial.set_user_attr(REASON, reason)
        self.study.tell(asked.trial, state=TrialState.FAIL)

    def close(self) -> None:
        """Let go of the worker's lock file; its trials left running count as dead then."""
        self._alive.release()
        Path(self._alive.lock_file).unlink(missing_ok=True)

    def _missing(self) -> int:
        states = (*FINISHED, TrialState.RUNNING)
        return self._search.n_trials - len(self.study.get_trials(deepcopy=False, states=states))

    def _open(self, plan: StudyPlan, seed: int) -> optuna.Study:
        # Optuna tells of every trial on standard error; the stage has its own progress bar.
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = open_storage(self._search.storage, self._folder, plan.name)
        study = optuna.create_study(
            study_name=plan.name,
            storage=storage,
            direction=DIRECTION[self._search.metric],
            pruner=make_pruner(self._search),
            load_if_exists=True,
        )
        if not study.user_attrs.get(_READY):
            for name, value in plan.topic.items():
                study.set_user_attr(name, value)
            for head in first_heads(self._search):
                _enqueue(study, self._search, head)
            study.set_user_attr(_READY, True)
        self._fail_dead(study)
        n_before = len(study.get_trials(deepcopy=False))
        study.sampler = make_sampler(self._search, [seed, n_before])
        return study

    def _fail_dead(self, study: optuna.Study) -> None:
        trials = study.get_trials(deepcopy=False)
        again = {trial.user_attrs.get(AGAIN) for trial in trials}
        for trial in trials:
            if trial.state is not TrialState.RUNNING or self._is_alive(trial):
                continue
            # asked for again before it is failed: a kill in between then loses nothing
            if trial.number not in again and (trial.params or HEAD in trial.user_attrs):
                kept = {key: trial.user_attrs[key] for key in (HEAD,) if key in trial.user_attrs}
                study.enqueue_trial(trial.params, {**kept, AGAIN: trial.number})
            study._storage.set_trial_user_attr(trial._trial_id, REASON, "its worker died")
            study.tell(trial.number, state=TrialState.FAIL)

    def _is_alive(self, trial: FrozenTrial) -> bool:
        worker = trial.user_attrs.get(WORKER)
        if worker is None:
            # Given out under the study's lock, which is held here: so its worker died in between.
            return False
        if worker == self._worker:
            return True
        path = self._life_line(worker)
        if not path.exists():
            return False
        try:
            with FileLock(path, timeout=0):
                pass
        except Timeout:
            return True
        path.unlink(missing_ok=True)
        return False

    def _life_line(self, worker: str) -> Path:
        return self._folder / f"{self._name}.workers" / f"{worker}.lock"

    def _hold_life_line(self) -> BaseFileLock:
        path = self._life_line(self._worker)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire()
        return lock


def first_heads(search: SearchParams) -> list[HeadConfig]:
    """Heads that every study begins with: the default one, a linear probe; or a whole grid."""
    heads = [search.default_head]
    if search.sampler == "grid":
        heads += [head for head in grid(search.space) if head != search.default_head]
        return heads[: search.n_trials]
    probe = HeadConfig(kind="linear_probe")
    if probe != search.default_head and is_in_space(search.space, probe):
        heads.append(probe)
    return heads


def make_sampler(search: SearchParams, seeds: Sequence[int]) -> optuna.samplers.BaseSampler:
    """The sampler that params name, seeded."""
    seed = int(np.random.SeedSequence(seeds).generate_state(1)[0])
    if search.sampler == "tpe":
        with warnings.catch_warnings():
            # `group` is what models conditional fields jointly; Optuna calls it experimental.
            warnings.simplefilter("ignore", ExperimentalWarning)
            return optuna.samplers.TPESampler(seed=seed, group=True)
    if search.sampler == "cmaes":
        if importlib.util.find_spec("cmaes") is None:
            raise SearchError(
                "search.sampler cmaes needs the package cmaes: install headstart[cmaes]"
            )
        return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
    return optuna.samplers.RandomSampler(seed=seed)


def make_pruner(search: SearchParams) -> optuna.pruners.BasePruner:
    """The pruner that params name; a resource is an epoch."""
    if search.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=3, max_resource="auto")
    if search.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=8, n_warmup_steps=3)
    return optuna.pruners.NopPruner()


def _enqueue(study: optuna.Study, search: SearchParams, head: HeadConfig) -> None:
    given = head.model_dump(mode="json")
    if all(trial.user_attrs.get(HEAD) != given for trial in study.get_trials(deepcopy=False)):
        study.enqueue_trial(known_fields(search.space, head), {HEAD: given})


def _record(trial: optuna.Trial, search: SearchParams, head: HeadConfig) -> None:
    """Let the sampler see the fields of a given head that the space asks for."""
    known = known_fields(search.space, head)
    choose = asking(trial)
    for name in known:
        choose(name, getattr(search.space, name))
