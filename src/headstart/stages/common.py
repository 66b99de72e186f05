"""What every stage does around its one call: checked params, one line out, plain errors."""

import argparse
import contextlib
import json
import os
import time
from collections.abc import Callable
from typing import TypeVar

from headstart.common.errors import HeadstartError, of_the_disk, of_tracking_library
from headstart.common.paths import Project, project, state_folder
from headstart.common.progress import telling
from headstart.common.terminal import say
from headstart.params.base import Section
from headstart.params.load import load_sections

S = TypeVar("S", bound=Section)


def run_stage(name: str, sections: type[S], run: Callable[[Project, S], str]) -> None:
    """Run a stage from the command line.

    `run` gets the workspace and the sections of params.yaml that the stage declares, and returns
    the one line that is printed. What the user can mend is printed without a traceback and ends
    the process with status 1; `--debug` or HEADSTART_DEBUG=1 shows the traceback.
    """
    parser = argparse.ArgumentParser(prog=f"python -m headstart.stages.{name}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    debug = parser.parse_args().debug or os.environ.get("HEADSTART_DEBUG") == "1"
    started = time.perf_counter()
    workspace = project()
    try:
        _check_params_file(workspace, name)
        with telling(name):
            line = run(workspace, load_sections(workspace.params, sections))
    except Exception as error:
        told = error if isinstance(error, HeadstartError) else None
        told = told or of_the_disk(error) or of_tracking_library(error)
        if told is None or debug:
            raise
        say(f"{name}: {told}", error=True)
        raise SystemExit(1) from None
    seconds = time.perf_counter() - started
    note_seconds(workspace, name, seconds)
    say(f"{name:<9} {line} ({seconds:.1f} s)")


def _check_params_file(workspace: Project, stage: str) -> None:
    """Check all of params.yaml for this stage and those after it.

    Imported here alone: it changes no output, so no stage depends on it or on what it imports.
    """
    from headstart.stages.checks import check_possible

    check_possible(workspace, stage)


def note_seconds(workspace: Project, stage: str, seconds: float) -> None:
    """Remember how long a stage took, for the summary of `make demo`; never an output."""
    path = state_folder(workspace.root) / "seconds.jsonl"
    # A stage that is done does not fail for want of room for this.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"stage": stage, "seconds": round(seconds, 2)}) + "\n")
