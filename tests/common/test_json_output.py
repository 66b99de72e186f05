"""`--json`: one value on standard output, and nothing else there, whatever happens on the way."""

import inspect
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from headstart.cli import app, cache_app

_SCRIPT = """
import os, subprocess, sys
from dataclasses import dataclass
from pathlib import Path
import numpy as np
from headstart.common.json_output import print_json, reserve_stdout
from headstart.common.terminal import say

@dataclass
class Found:
    path: Path
    values: tuple

reserve_stdout()
print("a library")
say("progress")
os.write(1, b"what C prints\\n")
subprocess.run([sys.executable, "-c", "print('a command')"], check=True)
print_json({
    "found": Found(Path("grün\\x1b[31m\\udcff"), (np.float32(0.5), float("nan"), None, True)),
    "rows": [np.arange(3), np.int64(4)],
    "at": "postgresql://me:pass@host/db",
})
"""


def test_all_else_goes_to_standard_error() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, check=True)
    assert json.loads(done.stdout.decode("ascii")) == {
        "found": {"path": "grün\x1b[31m\udcff", "values": [0.5, None, None, True]},
        "rows": [[0, 1, 2], 4],
        "at": "postgresql://host/db",
    }
    said = done.stderr.decode().splitlines()
    assert said == ["a library", "progress", "what C prints", "a command"]


def test_every_command_has_it() -> None:
    commands = [*app.registered_commands, *cache_app.registered_commands]
    callbacks = [command.callback for command in commands if command.callback is not None]
    without = {
        one.__name__ for one in callbacks if "json_" not in inspect.signature(one).parameters
    }
    assert without == {"serve", "mlproject"}
    assert len(callbacks) > 20


def _headstart(here: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "headstart", *arguments]
    return subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", ["encoders", "cache ls", "cache verify", "cache gc"])
def test_a_command_that_needs_no_project(tmp_path: Path, command: str) -> None:
    done = _headstart(tmp_path, *command.split(), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)


def test_exit_statuses_are_the_documented_ones(tmp_path: Path) -> None:
    made = _headstart(tmp_path, "init", "mine", "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout) == {"project": str(tmp_path / "mine")}
    here = tmp_path / "mine"
    assert json.loads(_headstart(here, "upgrade", "--json").stdout) == {"stages": []}

    refused = _headstart(here, "inspect", "params.yaml", "--json")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("headstart: ")
    assert len(refused.stderr.splitlines()) == 1
    unwell = _headstart(here, "doctor", "--json")
    assert unwell.returncode == 1
    assert json.loads(unwell.stdout)[0]["is_well"] is False
    wrong = _headstart(here, "doctor", "--jason")
    assert (wrong.returncode, wrong.stdout) == (2, "")


def test_help_is_grouped_and_completion_is_offered(tmp_path: Path) -> None:
    done = _headstart(tmp_path, "--help")
    panels = ["Begin", "Use a model", "Look", "Registry and history", "Search and cache"]
    places = [done.stdout.index(f"─ {panel} ─") for panel in panels]
    assert places == sorted(places)
    assert "─ Commands ─" not in done.stdout
    # The shell is the process that it is called by.
    shown = subprocess.run(
        ["bash", "-c", f"{shlex.quote(sys.executable)} -m headstart --show-completion; true"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "complete -o default -F" in shown.stdout, shown.stderr
