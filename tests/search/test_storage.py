"""The journal: mended where a writer died, read by plain Optuna, shared by processes."""

import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from headstart.common.errors import SearchError
from headstart.search.storage import JournalFile, journal_path, open_storage, study_exists


def _study(path: Path) -> optuna.Study:
    storage = JournalStorage(JournalFile(path))
    return optuna.create_study(study_name="s", storage=storage, load_if_exists=True)


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_line_cut_short_is_removed(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "s.journal"
    study = _study(path)
    for value in range(3):
        study.tell(study.ask(), float(value))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    again = _study(path)
    again.tell(again.ask(), 9.0)
    assert b"\n\n" not in path.read_bytes()
    values = [trial.value for trial in _study(path).get_trials(deepcopy=False)]
    assert values == [0.0, 1.0, None, 9.0] if cut < 40 else values[-1] == 9.0


def test_a_line_cut_short_while_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "s.journal"
    study = _study(path)
    with path.open("ab") as stream:
        stream.write(b'{"op_code":5,"worker_id"')
    study.tell(study.ask(), 1.0)
    assert [trial.value for trial in _study(path).get_trials()] == [1.0]


def test_a_file_of_half_a_line_alone_becomes_empty(tmp_path: Path) -> None:
    path = tmp_path / "s.journal"
    path.write_bytes(b'{"op_code"' * 20_000)
    assert _study(path).get_trials() == []


def test_plain_optuna_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "s.journal"
    study = _study(path)
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.report(0.5, 1)
    study.tell(trial, 0.25)
    plain = optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(path))))
    assert plain.best_value == 0.25
    assert plain.trials[0].intermediate_values == {1: 0.5}


def test_processes_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "s.journal"
    _study(path)
    code = (
        "import sys, optuna; from pathlib import Path\n"
        "from optuna.storages import JournalStorage\n"
        "from headstart.search.storage import JournalFile\n"
        "optuna.logging.set_verbosity(optuna.logging.WARNING)\n"
        "study = optuna.load_study(study_name='s', "
        "storage=JournalStorage(JournalFile(Path(sys.argv[1]))))\n"
        "for _ in range(20):\n"
        "    trial = study.ask(); trial.report(1.0, 1); study.tell(trial, 1.0)\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    trials = _study(path).get_trials()
    assert [trial.number for trial in trials] == list(range(60))
    assert all(trial.value == 1.0 for trial in trials)


def test_any_optuna_url(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    assert not study_exists(url, tmp_path, "s")
    optuna.create_study(study_name="s", storage=open_storage(url, tmp_path, "s"))
    assert study_exists(url, tmp_path, "s")
    assert not journal_path(tmp_path, "s").exists()


def test_a_storage_that_cannot_be_reached(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match=r"search\.storage must be an Optuna storage"):
        open_storage(f"sqlite:///{tmp_path}/no/such/folder/s.db", tmp_path, "s")
