"""The storage of studies: one SQLite file, read by plain Optuna, made and written by processes."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from headstart.common.errors import DiskError, SearchError
from headstart.search.study import (
    answering_storage,
    open_storage,
    storage_url,
    study_exists,
    study_file,
)
from tests.common.disks import make_room, small_disk
from tests.search.made_studies import params, run


def test_plain_optuna_reads_all_studies_from_one_file(features: Path, tmp_path: Path) -> None:
    first = run(features, tmp_path, n_trials=2)
    second = run(features, tmp_path, n_trials=2, metric="accuracy", pruner="median")
    url = storage_url(params(), tmp_path)
    assert first.storage == second.storage == url
    assert sorted(optuna.get_all_study_names(url)) == sorted([first.study_name, second.study_name])
    study = optuna.load_study(study_name=second.study_name, storage=url)
    assert study.best_trial.number == second.best.number
    assert study.best_value == pytest.approx(second.best.value, abs=1e-6)
    assert len(study.trials[0].intermediate_values) == len(second.trials[0].curve["accuracy"])


@pytest.mark.parametrize("name", ["a%20b", "d?e", "c#1", "my café #1 50%20?x"])
def test_studies_lie_in_their_folder_whatever_it_is_called(
    features: Path, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / name
    result = run(features, folder, n_trials=1)
    assert study_file(folder).is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert optuna.get_all_study_names(result.storage) == [result.study_name]


MAKES = """
import sys, optuna
from pathlib import Path
from headstart.params.search import SearchParams
from headstart.search.study import open_storage
optuna.logging.set_verbosity(optuna.logging.WARNING)
study = optuna.create_study(
    study_name="s", storage=open_storage(SearchParams(), Path(sys.argv[1])), load_if_exists=True
)
for _ in range(10):
    trial = study.ask(); trial.report(1.0, 1); study.tell(trial, 1.0)
"""


def test_processes_make_it_and_write_at_once(tmp_path: Path) -> None:
    """Without the lock SQLite's tables are made twice, and all but one process crash."""
    processes = [subprocess.Popen([sys.executable, "-c", MAKES, str(tmp_path)]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    study = optuna.load_study(study_name="s", storage=open_storage(params(), tmp_path))
    assert [trial.number for trial in study.trials] == list(range(30))
    assert all(trial.value == 1.0 for trial in study.trials)


def test_any_optuna_url(tmp_path: Path) -> None:
    search = params(storage=f"sqlite:///{tmp_path}/own.db")
    assert storage_url(search, tmp_path) == search.storage
    assert not study_exists(search, tmp_path, "s")
    optuna.create_study(study_name="s", storage=open_storage(search, tmp_path))
    assert study_exists(search, tmp_path, "s")
    assert not study_file(tmp_path).exists()


def test_a_full_disk_is_one_sentence_and_the_search_is_resumed(
    features: Path, tmp_path: Path
) -> None:
    solved = {"kind": "logistic_regression"}
    with small_disk(tmp_path / "disk", 300_000):
        with pytest.raises(DiskError, match=r"optuna.db cannot be used \(No space left"):
            run(features, tmp_path / "disk", n_trials=300, space=solved, default_head=solved)
        make_room(tmp_path / "disk", 10_000_000)
        result = run(features, tmp_path / "disk", n_trials=5, space=solved, default_head=solved)
    finished = [trial for trial in result.trials if trial.state == "COMPLETE"]
    assert len(finished) >= 5
    assert len({trial.config for trial in finished}) == len(finished)


def test_a_database_that_goes_away_is_one_sentence(tmp_path: Path) -> None:
    search = params()
    study = optuna.create_study(storage=open_storage(search, tmp_path))
    with sqlite3.connect(study_file(tmp_path)) as database:
        database.execute("DROP TABLE trials")
    with (
        pytest.raises(SearchError, match=r"must answer, but .*optuna\.db did not: .* resumes"),
        answering_storage(search, tmp_path),
    ):
        study.ask()


def test_a_storage_that_cannot_be_reached(tmp_path: Path) -> None:
    search = params(storage=f"sqlite:///{tmp_path}/no/such/folder/s.db")
    with pytest.raises(SearchError, match=r"search\.storage must be an Optuna storage"):
        open_storage(search, tmp_path)
