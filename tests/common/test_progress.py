"""Whatever takes long says something every ten seconds, on a terminal and elsewhere."""

import os
import pty
import shutil
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from headstart.common import progress as progress_module
from headstart.common.progress import estimate, progress_bar

# The ten seconds are a tenth of one here.
LONG = """
import time
from headstart.common import progress

progress.EVERY_S = 0.1
with progress.telling("train"):
    time.sleep(0.3)
    progress.begin_step("training the head")
    time.sleep(0.5)
    with progress.progress_bar(total=3, unit="images", title="pack") as bar:
        for _ in range(3):
            bar.update(1)
            time.sleep(0.3)
    for _ in progress.progress(range(2), total=0, unit="files", title="fetch"):
        time.sleep(0.3)
"""
QUICK = """
from headstart.common import progress

with progress.telling("train"), progress.progress_bar(total=1, unit="images", title="pack") as bar:
    bar.update(1)
"""


def _errors(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_lines_where_there_is_no_terminal() -> None:
    lines = _errors(LONG)
    assert all(line.startswith("train: ") for line in lines)
    text = "\n".join(lines)
    assert "train: working, 0 s" in text
    assert "train: training the head, 0 s" in text
    assert "train: 2 of 3 images," in text
    assert " files, " in text
    assert "\r" not in text
    assert len(lines) >= 8


def test_what_is_quick_says_nothing() -> None:
    assert _errors(QUICK) == []


def test_lines_and_a_bar_on_a_terminal() -> None:
    code = LONG.replace("progress.EVERY_S = 0.1", "progress.EVERY_S = 0.1; progress.DELAY_S = 0")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=theirs)
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(ours)
    assert process.wait() == 0
    assert b"train: training the head, 0 s" in seen
    assert b"pack:  67%" in seen
    assert seen.count(b"pack: ") > 3, "the bar moves"


def test_the_environment_says_what_it_installs(tmp_path: Path, repository: Path) -> None:
    """The script itself, with installers that only take their time, and a second for ten."""
    script = tmp_path / "tools" / "environment"
    script.parent.mkdir()
    script.write_text((repository / "tools/environment").read_text().replace("sleep 10", "sleep 1"))
    shutil.copytree(repository / "requirements", tmp_path / "requirements")
    shutil.copy(repository / "pyproject.toml", tmp_path)
    bin_folder = tmp_path / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    for name, seconds in (("python", 0), ("uv", 1.5)):
        (bin_folder / name).write_text(f"#!/bin/sh\nsleep {seconds}\n")
        (bin_folder / name).chmod(0o755)
    (bin_folder / "pip").write_text(f"#!{bin_folder}/python\n")
    command = ["bash", str(script), "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "environment: installing uv into .venv"
    assert "environment: installing packages (cpu), about two minutes, 1 s" in lines
    assert lines[-2].startswith("environment: installing headstart")
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert again.stdout == ""


STAGE = """
import sys
import time
from headstart.common import progress
from headstart.params.base import Section
from headstart.stages import checks, run_stage as module

progress.EVERY_S, sys.argv = 0.1, ["train"]
checks.check_possible = lambda *_: None
module.load_sections = lambda *_: None

def slow(*_):
    progress.begin_step("training the head")
    time.sleep(0.6)
    return "done"

module.run_stage("train", Section, slow)
"""


def test_every_stage_tells_what_it_does(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STAGE], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "train: training the head, 0 s" in done.stderr


def test_an_estimate_is_told_above_ten_minutes_alone() -> None:
    assert estimate("extract", "images", 36_000, 60.0) == ""
    assert (
        estimate("extract", "images", 50_000, 60.0)
        == "extract: 50,000 images left, about 14 min at 60 a second"
    )
    assert (
        estimate("search", "trials", 300, 0.025)
        == "search: 300 trials left, about 3.3 h at 1.5 a minute"
    )


def test_long_work_says_once_what_would_be_faster(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = 0.0
    monkeypatch.setattr("headstart.common.progress.time.monotonic", lambda: clock)
    monkeypatch.setattr(progress_module, "_told", set())
    for _ in range(2):
        bar = progress_bar(total=70_000, unit="images", title="extract", faster="a smaller one")
        clock += 30.0  # to prepare does not count
        with bar:
            for _ in range(8):
                bar.update(100)
                clock += 1.0
    # Of the first bar, when five seconds had passed since its first images.
    assert capsys.readouterr().err == (
        "extract: 69,400 images left, about 12 min at 100 a second\n  faster: a smaller one\n"
    )


def test_quick_work_and_work_that_nothing_makes_faster_say_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = 0.0
    monkeypatch.setattr("headstart.common.progress.time.monotonic", lambda: clock)
    for total, faster in ((20_000, "a smaller one"), (70_000, "")):
        with progress_bar(total=total, unit="images", title="extract", faster=faster) as bar:
            for _ in range(8):
                bar.update(100)
                clock += 1.0
    assert capsys.readouterr().err == ""
