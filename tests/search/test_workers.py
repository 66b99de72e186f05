"""Several workers on one study: they share it, wait for each other, and make up for the dead."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from filelock import FileLock

from headstart.common.errors import SearchError
from headstart.features.feature_store import FeatureStore
from headstart.params.search import SearchParams
from headstart.search import search_heads as search_module
from headstart.search.plan import plan_study
from headstart.search.results import StudyResult
from headstart.search.search_heads import join_study, run_study
from headstart.search.study import open_storage, study_file
from headstart.search.worker import Worker
from tests.search.made_studies import params, run, study_of


def test_trials_of_dead_workers_are_failed_and_asked_again(features: Path, tmp_path: Path) -> None:
    search = params(n_trials=5)
    with FeatureStore(features) as store:
        plan = plan_study(store, search, seed=0)
    dead = Worker(plan, search, tmp_path, seed=0)
    asked = [dead.ask() for _ in range(4)]
    dead.close()
    lost = [trial[1] for trial in asked if trial is not None]
    result = run(features, tmp_path, n_trials=5)
    by_state = {
        state: [t for t in result.trials if t.state == state] for state in ("FAIL", "COMPLETE")
    }
    assert [trial.number for trial in by_state["FAIL"]] == [0, 1, 2, 3]
    assert {trial.reason for trial in by_state["FAIL"]} == {"its worker died"}
    assert len(by_state["COMPLETE"]) == 5
    done = [trial.config for trial in by_state["COMPLETE"]]
    assert all(config in done for config in lost)
    assert run(features, tmp_path, n_trials=5) == result


def test_no_trial_of_a_dead_worker_is_left_running(features: Path, tmp_path: Path) -> None:
    search = params(n_trials=5)
    with FeatureStore(features) as store:
        plan = plan_study(store, search, seed=0)
    dead = Worker(plan, search, tmp_path, seed=0)
    assert dead.ask() is not None
    assert dead.ask() is not None
    dead.close()
    with pytest.raises(SearchError, match="needs a completed trial"):
        run(features, tmp_path, n_trials=5, timeout_s=1e-9)
    states = [trial.state.name for trial in study_of(features, tmp_path).trials]
    assert states[:2] == ["FAIL", "FAIL"]
    assert "RUNNING" not in states


def test_trials_of_living_workers_are_waited_for_and_those_of_dead_ones_made_again(
    features: Path, tmp_path: Path
) -> None:
    search = params(n_trials=4)
    with FeatureStore(features) as store:
        plan = plan_study(store, search, seed=0)
        other = Worker(plan, search, tmp_path, seed=0)
        asked, lost = other.ask(), other.ask()
        assert asked is not None
        assert lost is not None
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(run_study, store, search, seed=0, storage_folder=tmp_path)
            while sum(trial.state.is_finished() for trial in other.study.get_trials()) < 2:
                time.sleep(0.05)
            time.sleep(1)
            assert not running.done()
            other.fail(*asked, "for the test")
            other.close()
            result = running.result()
    assert [(trial.number, trial.state) for trial in result.trials] == [
        (0, "FAIL"),
        (1, "FAIL"),
        (2, "COMPLETE"),
        (3, "COMPLETE"),
        (4, "COMPLETE"),
        (5, "COMPLETE"),
    ]
    assert [trial.reason for trial in result.trials[:2]] == ["for the test", "its worker died"]
    assert result.trials[0].config == search.default_head
    assert lost[1] in [trial.config for trial in result.trials[4:]]


def test_a_stage_waits_for_others_no_longer_than_its_time(features: Path, tmp_path: Path) -> None:
    search = params(n_trials=1, timeout_s=2.0)
    with FeatureStore(features) as store:
        other = Worker(plan_study(store, search, seed=0), search, tmp_path, seed=0)
        assert other.ask() is not None
        with pytest.raises(SearchError, match="none completed"):
            run_study(store, search, seed=0, storage_folder=tmp_path)
        other.close()


def test_the_time_of_workers_is_not_given_again(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def all_killed(*_: Any, deadline: float, **__: Any) -> None:
        given.append(deadline)
        time.sleep(max(0.0, deadline - time.monotonic()))

    monkeypatch.setattr(search_module, "work_together", all_killed)
    with pytest.raises(SearchError, match="none completed"):
        run(features, tmp_path, workers=2, timeout_s=0.5)
    assert len(given) == 1


def test_workers_of_other_machines_live_by_their_heartbeats(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = params(n_trials=2, storage=f"sqlite:///{tmp_path}/shared.db")
    with FeatureStore(features) as store:
        plan = plan_study(store, search, seed=0)
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    remote = Worker(plan, search, tmp_path / "remote", seed=0)
    asked, other = remote.ask(), remote.ask()
    assert asked is not None
    assert other is not None
    monkeypatch.undo()

    def states() -> list[str]:
        with closing(Worker(plan, search, tmp_path / "here", seed=0)) as here:
            return [trial.state.name for trial in here.study.get_trials()]

    assert states() == ["RUNNING", "RUNNING"]
    with sqlite3.connect(tmp_path / "shared.db") as database:
        database.execute("UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 hour')")
    assert states() == ["FAIL", "FAIL", "WAITING", "WAITING"]
    # taken for dead by mistake, it goes on
    remote.run(time.monotonic() - 1)
    remote.fail(*asked, "for the test")
    remote.fail(*other, "for the test")
    remote.close()
    assert states() == ["FAIL", "FAIL", "WAITING", "WAITING"]


def test_joining_needs_a_study_that_has_begun(features: Path, tmp_path: Path) -> None:
    with FeatureStore(features) as store:
        with pytest.raises(SearchError, match="joining needs a study that has begun"):
            join_study(store, params(), seed=0, storage_folder=tmp_path)
        assert not study_file(tmp_path).exists()
        run_study(store, params(n_trials=2), seed=0, storage_folder=tmp_path)
        result = join_study(store, params(n_trials=5), seed=0, storage_folder=tmp_path)
    assert len(result.trials) == 5


def test_workers_share_a_study(features: Path, tmp_path: Path) -> None:
    result = run(features, tmp_path, n_trials=16, workers=2)
    assert [trial.number for trial in result.trials] == list(range(16))
    assert {trial.state for trial in result.trials} == {"COMPLETE"}
    assert len({str(trial.config) for trial in result.trials}) == 16
    study = study_of(features, tmp_path)
    assert len({trial.user_attrs["worker"] for trial in study.trials}) == 2
    assert not list((tmp_path / f"{result.study_name}.workers").iterdir())


KILLED = """
import sys
from pathlib import Path
from headstart.features.feature_store import FeatureStore
from headstart.search.search_heads import run_study
from headstart.params.search import SearchParams

features, folder, search = sys.argv[1:]
with FeatureStore(Path(features)) as store:
    run_study(store, SearchParams.model_validate_json(search), seed=0, storage_folder=Path(folder))
"""


def kill_and_go_on(
    features: Path, folder: Path, kills: int, search: SearchParams, within_s: float = 3.0
) -> StudyResult:
    """Run the search in processes that are killed at moments of chance; then to its end."""
    chance = np.random.default_rng(0)
    command = [sys.executable, "-c", KILLED, str(features), str(folder), search.model_dump_json()]
    path = study_file(folder)
    for _ in range(kills):
        before = path.stat().st_size if path.exists() else 0
        process = subprocess.Popen(command)
        # from the first word it writes; so kills do not all fall into the imports
        while process.poll() is None and (path.stat().st_size if path.exists() else 0) == before:
            time.sleep(0.01)
        time.sleep(float(chance.uniform(0, within_s)))
        assert process.poll() is None, "the search ended before it was killed as often"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with FeatureStore(features) as store:
        return run_study(store, search, seed=0, storage_folder=folder)


def check_killed(result: StudyResult, features: Path, folder: Path, search: SearchParams) -> None:
    finished = [trial for trial in result.trials if trial.state in ("COMPLETE", "PRUNED")]
    assert len(finished) == search.n_trials
    assert len({str(trial.config) for trial in finished}) == search.n_trials
    lost = [trial for trial in result.trials if trial.state == "FAIL"]
    assert {trial.reason for trial in lost} <= {"its worker died"}
    with FeatureStore(features) as store:
        name = plan_study(store, search, seed=0).name
    study = optuna.load_study(study_name=name, storage=open_storage(search, folder))
    states = [trial.state.name for trial in study.trials]
    assert states.count("RUNNING") == states.count("WAITING") == 0
    again = [t.user_attrs["retry_of"] for t in study.trials if "retry_of" in t.user_attrs]
    assert len(set(again)) == len(again)
    with FileLock(folder / f"{name}.lock", timeout=0):
        pass


def test_killed_searches_go_on(features: Path, tmp_path: Path) -> None:
    search = params(n_trials=20)
    result = kill_and_go_on(features, tmp_path, 2, search)
    check_killed(result, features, tmp_path, search)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_twenty_kills_of_a_hundred_trials(features: Path, tmp_path: Path) -> None:
    search = params(n_trials=100, space={"width": {"low": 4, "high": 64}, "epochs": 30})
    result = kill_and_go_on(features, tmp_path, 20, search, within_s=1.0)
    check_killed(result, features, tmp_path, search)


@pytest.mark.slow
def test_a_killed_worker_does_not_end_the_others(features: Path, tmp_path: Path) -> None:
    search = params(n_trials=60, workers=2, space={"width": {"low": 4, "high": 64}, "epochs": 30})
    command = [sys.executable, "-c", KILLED, str(features), str(tmp_path), search.model_dump_json()]
    process = subprocess.Popen(command)
    victim = None
    while victim is None and process.poll() is None:
        lines = sorted(tmp_path.glob("*.workers/*.lock"))
        pids = [int(path.name.split(".")[-3]) for path in lines]
        victim = next((pid for pid in pids if pid != process.pid), None)
        time.sleep(0.05)
    assert victim is not None
    time.sleep(2)
    os.kill(victim, signal.SIGKILL)
    assert process.wait() == 0
    with FeatureStore(features) as store:
        result = run_study(store, search, seed=0, storage_folder=tmp_path)
    check_killed(result, features, tmp_path, search)
