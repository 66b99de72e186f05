"""Ctrl-C, as a terminal sends it: one line, status 130, nothing half-written, no process left."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from headstart.common.interrupts import STATUS
from headstart.common.paths import Project
from headstart.params.search_space import DEFAULT_SPACE
from tests.heads.made_features import write_made_features
from tests.images.pictures import write_classes

REPOSITORY = Path(__file__).resolve().parents[2]


def _interrupted(
    command: list[str], folder: Path, when: Callable[[], bool], *, before: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run in a process group of its own, and interrupt all of it once `when` is true.

    Modules of the folder `before` are found before any other.
    """
    places = [str(place) for place in (before, REPOSITORY / "src") if place is not None]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(places),
        "HEADSTART_DEBUG": "0",
    }
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and not when():
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    left = [one.pid for one in psutil.process_iter() if _group(one.pid) == process.pid]
    deadline = time.monotonic() + 30
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left = [one.pid for one in psutil.process_iter() if _group(one.pid) == process.pid]
    assert left == [], "processes stay behind"
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def _group(pid: int) -> int | None:
    try:
        if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return None
        return os.getpgid(pid)
    except (ProcessLookupError, psutil.NoSuchProcess):
        return None


def _check(done: subprocess.CompletedProcess[str], name: str) -> None:
    assert done.returncode == STATUS == 130
    assert "Traceback" not in done.stderr
    *progress, last = done.stderr.splitlines()
    assert last == f"{name}: interrupted; the same command resumes it"
    assert all(re.match(rf"{name}: .* \d+ s$|{name}: \d+ of ", line) for line in progress)
    assert done.stdout == ""


def _workspace(folder: Path, params: str) -> Project:
    (folder / "dvc.yaml").write_text("stages: {}\n")
    (folder / "params.yaml").write_text(params)
    return Project(folder)


def _stage(name: str) -> list[str]:
    return [sys.executable, "-m", f"headstart.stages.{name}"]


SEARCH = f"""
search:
  n_trials: 100000
  metric: log_loss
  workers: WORKERS
  space: {DEFAULT_SPACE.model_copy(update={"kind": "network", "width": 8}).model_dump_json()}
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.ci), 2])
def test_a_search(tmp_path: Path, workers: int) -> None:
    project = _workspace(tmp_path, SEARCH.replace("WORKERS", str(workers)))
    write_made_features(project.features)
    studies = tmp_path / ".headstart" / "studies"

    def has_trials() -> bool:
        path = studies / "optuna.db"
        return path.exists() and b'"best_epoch"' in path.read_bytes()

    _check(_interrupted(_stage("search"), tmp_path, has_trials), "search")
    assert not project.best_head.exists()
    assert not list(studies.glob("*.workers/*.lock")) or workers > 1


DROPPED = """
import signal, time
from headstart.common.interrupts import end_plainly_when_interrupted

class Ends:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

end_plainly_when_interrupted()
Ends()
time.sleep(30)
"""


def test_an_interrupt_in_a_destructor_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "work.py"
    path.write_text(DROPPED)
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=25)
    assert (done.returncode, done.stderr) == (
        STATUS, "work: interrupted; the same command resumes it\n"
    )  # fmt: skip


def test_ingest_with_its_workers(tmp_path: Path, own_cache: Path) -> None:
    project = _workspace(tmp_path, "")
    write_classes(project.fetched, 300)
    is_reading = own_cache / "ingest"
    _check(_interrupted(_stage("ingest"), tmp_path, is_reading.exists), "ingest")
    assert not project.manifest.exists()
    assert not list(tmp_path.rglob("*.tmp*"))


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (_stage("train"), "train"),
        ([str(Path(sys.executable).parent / "headstart"), "doctor"], "headstart"),
    ],
)
def test_while_libraries_are_imported(tmp_path: Path, command: list[str], name: str) -> None:
    """Importing MLflow takes as long as it takes here: until the interrupt."""
    _workspace(tmp_path, "")
    slow = tmp_path / "slow"
    slow.mkdir()
    begun = tmp_path / "begun"
    (slow / "mlflow.py").write_text(
        f"open({str(begun)!r}, 'w').close()\n__import__('time').sleep(99)"
    )
    _check(_interrupted(command, tmp_path, begun.exists, before=slow), name)


DONE = """
import time
from headstart.common import interrupts

class LongToTidy:
    sleep = staticmethod(time.sleep)

    def __del__(self):
        self.sleep(3)

left = LongToTidy()
interrupts.end_plainly_when_interrupted()
print("done", flush=True)
"""


def test_after_the_work_is_done_it_changes_nothing(tmp_path: Path) -> None:
    """Python shuts down, which here takes long: the exit status is still that of the work."""
    script = tmp_path / "work.py"
    script.write_text(DONE)
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
    assert process.returncode == 0


PARENT = """
import sys
from headstart.common import interrupts

interrupts._OWN_END_S = 1
interrupts.end_plainly_when_interrupted()
child = "import subprocess; subprocess.run(['sleep', '99'])"
interrupts.run_command([sys.executable, "-c", child], shown=True)
"""


def test_a_command_that_this_process_has_begun(tmp_path: Path) -> None:
    """Only this process is interrupted, as `kill` does it: what it has begun ends too."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    errors = tmp_path / "errors"
    with errors.open("w") as stream:
        process = subprocess.Popen([sys.executable, str(script)], stderr=stream)
    family: list[psutil.Process] = []
    while len(family) < 2:
        family = psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == STATUS
    _, alive = psutil.wait_procs(family, timeout=30)
    assert alive == []
    assert errors.read_text().splitlines()[-1] == (
        "parent: interrupted; the same command resumes it"
    )
