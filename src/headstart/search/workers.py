"""Several processes on one study, each with a stack of its own."""

import multiprocessing
import os
import signal
import sys
import time
from contextlib import closing
from multiprocessing.context import SpawnProcess
from pathlib import Path

from headstart.common.errors import SearchError, one_line
from headstart.common.interrupts import children_ignoring_interrupts
from headstart.features.feature_store import FeatureStore
from headstart.params.search import SearchParams
from headstart.search.plan import StudyPlan, plan_study
from headstart.search.selection import AnswerStore
from headstart.search.trials import Trials
from headstart.search.worker import Worker


def deadline_of(search: SearchParams) -> float:
    """When `search.timeout_s` from now is over, on the monotonic clock that processes share."""
    return time.monotonic() + (search.timeout_s or float("inf"))


def work(
    plan: StudyPlan,
    search: SearchParams,
    folder: Path,
    *,
    seed: int,
    stream: int,
    deadline: float,
) -> None:
    """Be one worker of a study until it has enough trials, or `deadline` is past.

    Raises:
        SearchError: the study cannot go on.
    """
    with closing(Trials(plan, search, folder, seed=seed, stream=stream)) as trials:
        answers = AnswerStore(folder, plan.name)
        Worker(plan, search, trials, answers, deadline=deadline).run()


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
            plan = plan_study(store, search, seed=seed, folder=folder)
        work(plan, search, folder, seed=seed, stream=index, deadline=deadline)
    except SearchError as error:
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
