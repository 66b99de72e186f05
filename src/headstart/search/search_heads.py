"""The search for the best head over cached features, by this process or several.

Knows nothing of DVC, MLflow and params.yaml's file.
"""

import itertools
import multiprocessing
import os
import signal
import sys
import time
from contextlib import closing
from multiprocessing.context import SpawnProcess
from pathlib import Path

from headstart.common.errors import HeadstartError, SearchError, one_line
from headstart.common.interrupts import children_ignoring_interrupts
from headstart.common.progress import begin_step
from headstart.features.feature_store import FeatureStore
from headstart.params.search import SearchParams
from headstart.search.memory import check_memory
from headstart.search.plan import plan_study, with_blocks
from headstart.search.results import StudyResult, read_study
from headstart.search.study import answering_storage, study_exists
from headstart.search.worker import Worker

_POLL_S = 2.0


def run_study(
    store: FeatureStore, search: SearchParams, *, seed: int, storage_folder: Path
) -> StudyResult:
    """Search until the study has `search.n_trials` finished trials; resume an old one.

    Waits for trials that others run; those of a worker that dies are run again here.

    Raises:
        SearchError: the search cannot start or be resumed, or no trial completed.
    """
    search = with_blocks(search, store.layers)
    plan = plan_study(store, search, seed=seed)
    check_memory(plan, search)
    deadline = float("inf")
    with answering_storage(search, storage_folder):
        for turn in itertools.count():
            # Samples of its own, unlike those of the workers and of earlier turns.
            stream = search.workers + turn if turn else 0
            worker = Worker(plan, search, storage_folder, seed=seed, stream=stream)
            with closing(worker):
                if turn == 0:
                    deadline = _deadline(search)  # to make a storage may take seconds
                if turn and time.monotonic() >= deadline:
                    break
                if not worker.wants_more():
                    if not worker.has_running():
                        break
                    begin_step("waiting for trials of other workers")
                    time.sleep(_POLL_S)
                elif search.workers > 1 and turn == 0:
                    begin_step(f"{search.workers} workers train heads")
                    work_together(store.path, search, storage_folder, seed=seed, deadline=deadline)
                else:
                    worker.run(deadline)
        result = read_study(plan, search, storage_folder)
    if all(trial.value is None for trial in result.trials):
        if skipped := [t.reason for t in result.trials if t.state == "PRUNED" and t.reason]:
            raise SearchError(
                f"no head that was tried fits the limits, the last model has {skipped[-1]}: raise "
                "them, or let search.space.layers choose blocks of earlier layers"
            )
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
        SearchError: there is no such study, or it cannot be resumed.
    """
    search = with_blocks(search, store.layers)
    plan = plan_study(store, search, seed=seed)
    with answering_storage(search, storage_folder):
        if not study_exists(search, storage_folder, plan.name):
            raise SearchError(
                f"joining needs a study that has begun, but there is no {plan.name} in "
                f"{search.storage or storage_folder}: start `dvc repro search` first, "
                "with the same params.yaml"
            )
        stream = 1000 + os.getpid()
        with closing(Worker(plan, search, storage_folder, seed=seed, stream=stream)) as worker:
            worker.run(_deadline(search))
        return read_study(plan, search, storage_folder)


def _deadline(search: SearchParams) -> float:
    """When `search.timeout_s` from now is over, on the monotonic clock that processes share."""
    return time.monotonic() + (search.timeout_s or float("inf"))


def work_together(
    features: Path, search: SearchParams, folder: Path, *, seed: int, deadline: float
) -> None:
    """Run `search.workers` processes on a study that exists; a killed one leaves its trials.

    Raises:
        SearchError: a worker could not go on, with its reason.
    """
    context = multiprocessing.get_context("spawn")
    errors = context.SimpleQueue()
    processes: list[SpawnProcess] = [
        context.Process(
            target=_process,
            args=(features, search.model_dump_json(), folder, seed, index, deadline, errors),
            name=f"search-worker-{index}",
        )
        for index in range(search.workers)
    ]
    with children_ignoring_interrupts():
        for process in processes:
            process.start()
    try:
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
    if not errors.empty():
        raise SearchError(errors.get())


def _process(
    features: Path,
    params_json: str,
    folder: Path,
    seed: int,
    index: int,
    deadline: float,
    errors: "multiprocessing.SimpleQueue[str]",
) -> None:
    # The parent ends its workers when it is interrupted: they are to leave the study in order.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    search = SearchParams.model_validate_json(params_json)
    _keep_to_own_cores(index, search.workers)
    try:
        with FeatureStore(features) as store:
            plan = plan_study(store, search, seed=seed)
        with (
            answering_storage(search, folder),
            closing(Worker(plan, search, folder, seed=seed, stream=index)) as worker,
        ):
            worker.run(deadline)
    except HeadstartError as error:
        errors.put(one_line(error))
        raise SystemExit(1) from None


def _keep_to_own_cores(index: int, n_workers: int) -> None:
    """Give the workers disjoint shares of the cores, so that they do not slow each other."""
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // n_workers
    if share:
        os.sched_setaffinity(0, cores[index * share : (index + 1) * share])
