"""Searches in processes of their own, for memory and for workers held to one core each."""

import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path

import optuna
import psutil

from headstart.params.search import SearchParams
from headstart.search.study import open_storage, study_file

_CODE = """
import sys
from pathlib import Path
from headstart.features.feature_store import FeatureStore
from headstart.search.search_heads import join_study, run_study
from headstart.params.search import SearchParams
features, folder, search, how = sys.argv[1:]
go = run_study if how == "run" else join_study
with FeatureStore(Path(features)) as store:
    go(store, SearchParams.model_validate_json(search), seed=0, storage_folder=Path(folder))
"""


def rss_after(
    features: Path, folder: Path, search: SearchParams, counts: tuple[int, int]
) -> tuple[float, float]:
    """Resident megabytes of a search when so many trials have ended, and so many more."""
    process = _start(features, folder, search, "run")
    found: list[float] = []
    while process.poll() is None:
        if _count(folder, _ENDED) >= counts[len(found)]:
            found.append(psutil.Process(process.pid).memory_info().rss / 1e6)
            if len(found) == len(counts):
                break
        time.sleep(0.2)
    process.terminate()
    process.wait()
    if len(found) < len(counts):
        raise RuntimeError(f"the search ended before {counts[len(found)]} trials")
    return found[0], found[1]


def seconds_and_memory(features: Path, folder: Path, search: SearchParams) -> tuple[float, float]:
    """Seconds and largest resident gigabytes of a search in a process of its own."""
    started = time.perf_counter()
    process = _start(features, folder, search, "run")
    largest = 0
    while process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            largest = max(largest, psutil.Process(process.pid).memory_info().rss)
        time.sleep(0.02)
    if process.returncode:
        raise RuntimeError(f"the search ended with {process.returncode}")
    return time.perf_counter() - started, largest / 1e9


def trials_per_second(
    features: Path, folder: Path, search: SearchParams, n_workers: int
) -> tuple[float, int]:
    """Of workers held to one core each, from the first trial's begin to the last one's end.

    Returns:
        Trials a second, and how many trials were lost or counted twice.
    """
    first = _start(features, folder, search, "run", core=0)
    while n_workers > 1 and not _count(folder, "SELECT count(*) FROM trials"):
        time.sleep(0.05)
    others = [_start(features, folder, search, "join", core=i) for i in range(1, n_workers)]
    codes = [process.wait() for process in (first, *others)]
    if any(codes):
        raise RuntimeError(f"workers ended with {codes}")
    trials = _study(folder, search).get_trials()
    begin = min(t.datetime_start for t in trials if t.datetime_start)
    end = max(t.datetime_complete for t in trials if t.datetime_complete)
    done = [trial for trial in trials if trial.state.name == "COMPLETE"]
    wrong = abs(len(done) - search.n_trials) + (len(trials) - len(done))
    return len(done) / ((end - begin) / timedelta(seconds=1)), wrong


def _start(
    features: Path, folder: Path, search: SearchParams, how: str, core: int | None = None
) -> "subprocess.Popen[bytes]":
    folder.mkdir(parents=True, exist_ok=True)
    arguments = [str(features), str(folder), search.model_dump_json(), how]
    command = [sys.executable, "-c", _CODE, *arguments]
    if core is None:
        return subprocess.Popen(command)
    cores = sorted(os.sched_getaffinity(0))
    return subprocess.Popen(["taskset", "-c", str(cores[core % len(cores)]), *command])


def _study(folder: Path, search: SearchParams) -> optuna.Study:
    storage = open_storage(search, folder)
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


_ENDED = "SELECT count(*) FROM trials WHERE state IN ('COMPLETE', 'PRUNED')"


def _count(folder: Path, query: str) -> int:
    """What a query of the studies' database counts: a study would have to be loaded each time."""
    if not study_file(folder).exists():
        return 0
    with closing(sqlite3.connect(study_file(folder), timeout=60)) as database:
        try:
            return int(database.execute(query).fetchone()[0])
        except sqlite3.OperationalError:
            return 0  # its tables are being made
