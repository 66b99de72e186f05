"""A study in Optuna's own storage: opened, begun with its first heads, resumed after a kill.

By default one SQLite file holds all studies, so that one `optuna-dashboard` shows them.
"""

import importlib.util
import json
import os
import socket
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import optuna
from filelock import BaseFileLock, FileLock, Timeout
from optuna.exceptions import (
    ExperimentalWarning,
    StorageInternalError,
    UpdateFinishedTrialError,
)
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from headstart.common.errors import SearchError, of_the_disk, one_line
from headstart.common.paths import sqlite_uri
from headstart.common.secrets import without_secrets
from headstart.heads.config import HeadConfig
from headstart.heads.metrics import DIRECTION
from headstart.params.search import SearchParams
from headstart.search.plan import StudyPlan, excess, may_share_trials
from headstart.search.space import (
    distributions,
    essence,
    extremes,
    first_heads,
    grid,
    is_enumerated,
    is_in_space,
    known_fields,
)

HEARTBEAT_S = 30
_GRACE_S = 150
_WAIT_FOR_SQLITE_S = 60
_ENQUEUED_AT_ONCE = 32
_MIN_EPOCHS = 3
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)

# User attributes of trials.
HEAD, WORKER, RESULT, REASON = "head", "worker", "result", "reason"
RETRY_OF, REUSED = "retry_of", "reused_from"
MFLOPS, MODEL_MB = "mflops", "model_mb"
# A user attribute of studies.
TOPIC = "topic"


def study_file(folder: Path) -> Path:
    """The SQLite file of all studies, in the folder of their locks and answers."""
    return folder / "optuna.db"


def storage_url(search: SearchParams, folder: Path) -> str:
    """The Optuna URL of the studies: as params say, else the SQLite file in `folder`."""
    return search.storage or sqlite_uri(study_file(folder))


def open_storage(search: SearchParams, folder: Path) -> RDBStorage:
    """Open the storage of studies, made when it is not there.

    Raises:
        SearchError: it cannot be reached.
    """
    url = storage_url(search, folder)
    engine = {"connect_args": {"timeout": _WAIT_FOR_SQLITE_S}} if url.startswith("sqlite") else None
    folder.mkdir(parents=True, exist_ok=True)
    try:
        # Two processes that make the tables at once crash each other.
        with FileLock(folder / "optuna.lock"), warnings.catch_warnings():
            # Heartbeats are how a database learns of dead workers; Optuna calls them experimental.
            warnings.simplefilter("ignore", ExperimentalWarning)
            if search.storage is None:
                return RDBStorage(url, engine_kwargs=engine)
            return RDBStorage(
                url,
                engine_kwargs=engine,
                heartbeat_interval=HEARTBEAT_S,
                grace_period=_GRACE_S,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
            )
    except Exception as error:
        raise SearchError(
            "search.storage must be an Optuna storage that can be reached, but "
            f"{without_secrets(url)} cannot: {without_secrets(one_line(error))}"
        ) from None


@contextmanager
def answering_storage(search: SearchParams, folder: Path) -> Iterator[None]:
    """Say in one sentence when the storage fails: a full disk, a database that went away.

    Raises:
        DiskError: its disk is full or read-only.
        SearchError: it does not answer.
    """
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        cause = error.__cause__ or error
        if search.storage is None and (told := of_the_disk(cause, study_file(folder))):
            raise told from error
        raise SearchError(
            "the storage of the study must answer, but "
            f"{without_secrets(storage_url(search, folder))} did not: "
            f"{without_secrets(one_line(cause))}; when it does, the same command resumes the search"
        ) from None


def study_exists(search: SearchParams, folder: Path, name: str) -> bool:
    """Whether the storage holds a study of that name."""
    if search.storage is None and not study_file(folder).exists():
        return False
    return name in optuna.get_all_study_names(open_storage(search, folder))


def study_lock(folder: Path, name: str) -> BaseFileLock:
    """The lock under which trials of a study are asked for, among processes of this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{name}.lock")


class WorkerLock:
    """Held by a worker while it lives: the operating system frees it when the worker dies.

    Attributes:
        name: of the worker; begins with the machine's name.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = f"{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        self._folder = folder
        self._lock = FileLock(folder / f"{self.name}.lock")
        self._lock.acquire()

    def release(self) -> None:
        """Count as dead from now on."""
        self._lock.release()
        (self._folder / f"{self.name}.lock").unlink(missing_ok=True)

    def may_live(self, worker: str) -> bool:
        """Whether a worker holds its lock file, or is of another machine: its heartbeats tell."""
        if worker == self.name or not worker.startswith(f"{socket.gethostname()}."):
            return True
        path = self._folder / f"{worker}.lock"
        if not path.exists():
            return False
        try:
            with FileLock(path, timeout=0):
                pass
        except Timeout:
            return True
        path.unlink(missing_ok=True)
        return False


def open_study(
    plan: StudyPlan, search: SearchParams, storage: RDBStorage, lock: WorkerLock
) -> optuna.Study:
    """Create or load the study, and retry what dead workers left. Call under the study's lock.

    Every step may be cut short by a kill, and is made up for by the next call.
    """
    # Optuna tells of every trial on standard error; the stage has its own progress bar.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=plan.name,
        storage=storage,
        direction=DIRECTION[search.metric],
        pruner=make_pruner(search),
        load_if_exists=True,
    )
    if TOPIC not in study.user_attrs:
        with warnings.catch_warnings():
            # Optuna calls it experimental; its dashboard and its table say it for "value".
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names([search.metric])
        study.set_user_attr(TOPIC, plan.topic)  # last: it says that the others are there
    tried = set(heads_of(study.get_trials(deepcopy=False)))
    room = max(0, missing(study, search))
    # Each time, since n_trials is not in the name and decides how many of them there are.
    for head in [head for head in first_heads(search) if essence(head) not in tried][:room]:
        enqueue(study, search, head)
    if search.reuse_trials:
        _add_old_trials(study, plan, search, storage)
    _retry_lost(study, storage, lock)
    return study


def make_sampler(search: SearchParams, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler that params name. A grid's heads are enqueued: nothing is left to sample."""
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
    """The pruner that params name; its resource is an epoch."""
    if search.pruner == "hyperband":
        most = max(*extremes(search.space, "epochs"), search.default_head.epochs, _MIN_EPOCHS)
        return optuna.pruners.HyperbandPruner(min_resource=_MIN_EPOCHS, max_resource=most)
    if search.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=8, n_warmup_steps=_MIN_EPOCHS)
    return optuna.pruners.NopPruner()


def missing(study: optuna.Study, search: SearchParams) -> int:
    """How many more trials the study needs, beside those that run."""
    trials = study.get_trials(deepcopy=False, states=(*FINISHED, TrialState.RUNNING))
    return search.n_trials - sum(REUSED not in trial.user_attrs for trial in trials)


def enqueue(study: optuna.Study, search: SearchParams, head: HeadConfig) -> None:
    """Ask for a head that is given."""
    given = head.model_dump(mode="json")
    study.enqueue_trial(known_fields(search.space, head), {HEAD: given})


def has_next(study: optuna.Study, search: SearchParams) -> bool:
    """Whether the study has a head to try: of a space that is tried whole, enqueue the next ones.

    Call under the study's lock.
    """
    if not is_enumerated(search):
        return True
    if study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        return True
    tried = set(heads_of(study.get_trials(deepcopy=False)))
    most = min(_ENQUEUED_AT_ONCE, missing(study, search))
    some = list(islice((head for head in grid(search.space) if head not in tried), most))
    for head in some:
        enqueue(study, search, head)
    return bool(some)


def heads_of(trials: Iterable[FrozenTrial]) -> Iterator[HeadConfig]:
    """The heads that a study's own trials were given or have trained, each by its essence."""
    for trial in trials:
        head = trial.user_attrs.get(HEAD) or trial.user_attrs.get(RESULT, {}).get("config")
        if head is not None and REUSED not in trial.user_attrs:
            yield essence(HeadConfig.model_validate(head))


def _retry_lost(study: optuna.Study, storage: RDBStorage, lock: WorkerLock) -> None:
    """Fail the trials of workers that are dead, and ask for them again."""
    if storage.get_heartbeat_interval() is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            fail_stale_trials(study)
    trials = study.get_trials(deepcopy=False)
    retried = {trial.user_attrs.get(RETRY_OF) for trial in trials}
    for trial in trials:
        # A trial without a worker: that one died while it asked, under the lock that is held now.
        worker = trial.user_attrs.get(WORKER)
        if trial.state is not TrialState.RUNNING or (worker and lock.may_live(worker)):
            continue
        given = trial.user_attrs.get(HEAD)
        if (trial.params or given) and trial.number not in retried:
            # enqueued before it is failed: a kill in between then loses nothing
            kept = {HEAD: given} if given else {}
            study.enqueue_trial(trial.params, {**kept, RETRY_OF: trial.number})
        with suppress(UpdateFinishedTrialError):
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def _add_old_trials(
    study: optuna.Study, plan: StudyPlan, search: SearchParams, storage: RDBStorage
) -> None:
    """Add what studies of the same data found of heads that the new space has too."""
    known = {trial.user_attrs.get(REUSED) for trial in study.get_trials(deepcopy=False)}
    for name in sorted(optuna.get_all_study_names(storage)):
        old = optuna.load_study(study_name=name, storage=storage)
        topic: Mapping[str, Any] = old.user_attrs.get(TOPIC, {})
        if name == plan.name or not may_share_trials(topic, json.loads(json.dumps(plan.topic))):
            continue
        for trial in old.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            origin = f"{name}/{trial.number}"
            result: dict[str, Any] = trial.user_attrs.get(RESULT, {})
            if REUSED in trial.user_attrs or origin in known or "config" not in result:
                continue
            head = HeadConfig.model_validate(result["config"])
            if is_in_space(search.space, head) and not excess(search, plan.cost(head)):
                fields = known_fields(search.space, head)
                costs = {k: v for k, v in trial.user_attrs.items() if k in (MFLOPS, MODEL_MB)}
                study.add_trial(
                    create_trial(
                        value=trial.value,
                        params=fields,
                        distributions=distributions(search.space, fields),
                        user_attrs={**costs, RESULT: result, REUSED: origin},
                        intermediate_values=trial.intermediate_values,
                    )
                )
