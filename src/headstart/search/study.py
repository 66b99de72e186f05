"""A study opened: begun with its first heads, or gone on with after a kill.

Safe against kills at any moment. A trial that a dead worker left running is failed, and its head
asked for again, once.
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import fail_stale_trials
from optuna.trial import FrozenTrial, TrialState, create_trial

from headstart.heads.config import HeadConfig
from headstart.heads.metrics import DIRECTION
from headstart.params.search import SearchParams
from headstart.search.life import LifeLine
from headstart.search.plan import StudyPlan, may_share_trials
from headstart.search.sampling import first_heads, make_pruner
from headstart.search.space import distributions, essence, is_in_space, known_fields
from headstart.search.storage import has_heartbeats, neighbours, open_storage

# User attributes of trials.
HEAD, WORKER, RESULT, REASON = "head", "worker", "result", "reason"
AGAIN, REUSED = "again_of", "reused_from"
# User attributes of studies.
TOPIC, READY = "topic", "ready"


def open_study(plan: StudyPlan, search: SearchParams, folder: Path, life: LifeLine) -> optuna.Study:
    """Create or load the study, and mend what dead workers left. Call under the study's lock."""
    # Optuna tells of every trial on standard error; the stage has its own progress bar.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=plan.name,
        storage=open_storage(search.storage, folder, plan.name),
        direction=DIRECTION[search.metric],
        pruner=make_pruner(search),
        load_if_exists=True,
    )
    if study.metric_names is None:
        with warnings.catch_warnings():
            # Optuna calls it experimental; its dashboard and its table say it for "value".
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names([search.metric])
    is_new = not study.user_attrs.get(READY)
    if is_new:
        study.set_user_attr(TOPIC, plan.topic)
    # Each time: n_trials, which decides the first heads, is not in the name.
    _enqueue_first(study, search)
    if is_new:
        if search.reuse_trials:
            _add_old_trials(study, plan, search, folder)
        study.set_user_attr(READY, True)
    _fail_dead(study, life)
    return study


def _enqueue_first(study: optuna.Study, search: SearchParams) -> None:
    """Ask for the first heads that the study has not had, as far as it needs more trials."""
    own = [t for t in study.get_trials(deepcopy=False) if REUSED not in t.user_attrs]
    known = set(heads_of(own))
    room = search.n_trials - sum(t.state is not TrialState.FAIL for t in own)
    for head in first_heads(search):
        if room > 0 and essence(head) not in known:
            enqueue(study, search, head)
            room -= 1


def enqueue(study: optuna.Study, search: SearchParams, head: HeadConfig) -> None:
    """Ask for a head that is given."""
    given = head.model_dump(mode="json")
    study.enqueue_trial(known_fields(search.space, head), {HEAD: given})


def heads_of(trials: Iterable[FrozenTrial]) -> Iterator[HeadConfig]:
    """The heads that a study's own trials were given or have trained, each by its essence."""
    for trial in trials:
        head = trial.user_attrs.get(HEAD) or trial.user_attrs.get(RESULT, {}).get("config")
        if head is not None and REUSED not in trial.user_attrs:
            yield essence(HeadConfig.model_validate(head))


def _fail_dead(study: optuna.Study, life: LifeLine) -> None:
    if has_heartbeats(study._storage):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            fail_stale_trials(study)
    trials = study.get_trials(deepcopy=False)
    again = {trial.user_attrs.get(AGAIN) for trial in trials}
    for trial in trials:
        is_dead = trial.state is TrialState.RUNNING and not _is_alive(trial, study, life)
        # Those that a database failed as stale have no reason either.
        is_stale = trial.state is TrialState.FAIL and REASON not in trial.user_attrs
        if (is_dead or is_stale) and trial.number not in again:
            # asked for again before it is failed: a kill in between then loses nothing
            _ask_again(study, trial)
        if is_dead:
            # another machine may have failed it since
            with suppress(UpdateFinishedTrialError):
                study._storage.set_trial_user_attr(trial._trial_id, REASON, "its worker died")
                study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def _ask_again(study: optuna.Study, trial: FrozenTrial) -> None:
    attributes = trial.user_attrs
    if trial.params or HEAD in attributes:
        kept = {HEAD: attributes[HEAD]} if HEAD in attributes else {}
        study.enqueue_trial(trial.params, {**kept, AGAIN: trial.number})


def _is_alive(trial: FrozenTrial, study: optuna.Study, life: LifeLine) -> bool:
    worker = trial.user_attrs.get(WORKER)
    if worker is None:
        # Trials are given out under the study's lock, which is held now: its worker died at that.
        return False
    if has_heartbeats(study._storage) and not life.is_of_this_machine(worker):
        return True  # the database's heartbeats tell
    return life.is_alive(worker)


def _add_old_trials(
    study: optuna.Study, plan: StudyPlan, search: SearchParams, folder: Path
) -> None:
    """Add what studies of the same data found of heads that the new space has too."""
    known = {trial.user_attrs.get(REUSED) for trial in study.get_trials(deepcopy=False)}
    for old in neighbours(study, search.storage, folder):
        if not may_share_trials(old.user_attrs.get(TOPIC, {}), plan.topic):
            continue
        for trial in old.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            origin = f"{old.study_name}/{trial.number}"
            result: dict[str, Any] = trial.user_attrs.get(RESULT, {})
            if REUSED in trial.user_attrs or origin in known or "config" not in result:
                continue
            head = HeadConfig.model_validate(result["config"])
            if is_in_space(search.space, head):
                study.add_trial(_copy(trial, head, search, origin))


def _copy(trial: FrozenTrial, head: HeadConfig, search: SearchParams, origin: str) -> FrozenTrial:
    fields = known_fields(search.space, head)
    return create_trial(
        value=trial.value,
        params=fields,
        distributions=distributions(search.space, fields),
        user_attrs={RESULT: trial.user_attrs[RESULT], REUSED: origin},
        intermediate_values=trial.intermediate_values,
    )
