"""What every stage does around its work: check params.yaml, print its summary, report errors."""

import argparse
import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from headstart.common.errors import HeadstartError, of_the_disk, of_tracking_library
from headstart.common.paths import Project, project, state_folder
from headstart.common.progress import telling
from headstart.common.terminal import say
from headstart.params.base import Section
from headstart.params.load import load_sections

S = TypeVar("S", bound=Section)


def _missing_input(error: Exception, here: Project, name: str) -> HeadstartError | None:
    """The error of a stage that is run by hand before those whose outputs it reads."""
    path = Path(str(getattr(error, "filename", None) or ""))
    if not isinstance(error, FileNotFoundError) or here.root not in path.absolute().parents:
        return None
    return HeadstartError(
        f"{name} needs {path.absolute().relative_to(here.root).as_posix()}, but it is not there: "
        f"`dvc repro {name}` runs the stages before it, `dvc pull` fetches what is stored"
    )


def run_stage(name: str, sections: type[S], run: Callable[[Project, S], str]) -> None:
    """Run a stage from the command line.

    `run` gets the project and the sections of params.yaml that the stage declares, and returns its
    summary, which is printed. An error that the user can repair is printed without a traceback and
    ends the process with status 1; `--debug` or HEADSTART_DEBUG=1 shows the traceback.
    """
    parser = argparse.ArgumentParser(prog=f"python -m headstart.stages.{name}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    debug = parser.parse_args().debug or os.environ.get("HEADSTART_DEBUG") == "1"
    started = time.perf_counter()
    here = project()
    try:
        # Imported here: it checks all of params.yaml and changes no output, so that no stage
        # depends on it or on what it imports.
        from headstart.stages.checks import check_possible

        check_possible(here, name)
        with telling(name):
            summary = run(here, load_sections(here.params, sections))
    except Exception as error:
        plain = error if isinstance(error, HeadstartError) else None
        plain = plain or of_the_disk(error) or of_tracking_library(error)
        plain = plain or _missing_input(error, here, name)
        if plain is None or debug:
            raise
        say(f"{name}: {plain}", error=True)
        raise SystemExit(1) from None
    seconds = time.perf_counter() - started
    # For `headstart summary`; a stage that is done does not fail for want of room for this.
    with contextlib.suppress(OSError):
        path = state_folder(here.root) / "seconds.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"stage": name, "seconds": round(seconds, 2)}) + "\n")
    say(f"{name:<9} {summary} ({seconds:.1f} s)")
