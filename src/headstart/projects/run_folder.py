"""`headstart run`: a folder of images, all the way to what its labels and its model are worth."""

import os
import shlex
import sys
from pathlib import Path

import numpy as np

from headstart.common import files
from headstart.common.errors import DataError, TrainingError
from headstart.common.interrupts import run_command
from headstart.common.paths import Project
from headstart.common.terminal import printable, say
from headstart.evaluation.error_analysis import likely_label_errors
from headstart.models.predictions import read_predictions
from headstart.projects.create import init_project
from headstart.projects.recipes import LOCK
from headstart.reports.summary import accuracy_text

_MOST_LABELS = 10


def run_folder(source: Path, folder: Path | None) -> None:
    """Run the pipeline of a folder as `run_project` does, and print what came out."""
    project = run_project(source, folder)
    say(what_came_out(project, shown=Path(os.path.relpath(project.root))))


def run_project(source: Path, folder: Path | None) -> Project:
    """Make a project beside `source`, or go on with the one that is there, and run its pipeline.

    Args:
        source: a folder of images, one folder a class.
        folder: of the project; by default the name of `source` with `-headstart` after it.

    Raises:
        DataError: `source` is no folder.
        ParamsError: `folder` holds something else than such a project.
        TrainingError: a stage failed; it has said why.
    """
    source = source.absolute()
    if not source.is_dir():
        raise DataError(
            f"`headstart run` takes a folder with one folder of images a class, but {source} is "
            "none: name one"
        )
    folder = folder or source.with_name(f"{source.name}-headstart")
    if (folder / LOCK).is_file():
        project = Project(folder.absolute())
        say(f"Goes on in {printable(folder)}, by its params.yaml.")
    else:
        project = init_project(folder, str(source))
        say(f"Made the project {printable(folder)}.")
    # The stages run by `python`: by the one that runs this.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    # Quiet: a stage says what it did in one line.
    command = [sys.executable, "-m", "dvc", "repro", "--quiet"]
    done = run_command(command, cwd=project.root, env={**os.environ, "PATH": path})
    if done.returncode:
        raise TrainingError(
            f"the pipeline in {folder} must run to its end, but a stage stopped, as it says above: "
            "mend that and run the same command again, which goes on from there"
        )
    return project


def what_came_out(project: Project, shown: Path) -> str:
    """Return accuracy, labels that are probably wrong, and what one may do next.

    Args:
        shown: the project's folder as the user reaches it.
    """
    accuracy = accuracy_text(files.read_json(project.metrics))
    parts = [
        read_predictions(project.out_of_fold, "validation"),
        read_predictions(project.predictions, "test"),
    ]
    labels = np.concatenate([part.label_ids for part in parts])
    probabilities = np.concatenate([part.probabilities for part in parts])
    paths = [path for part in parts for path in part.paths]
    classes = parts[0].classes
    suspicious = likely_label_errors(labels, probabilities)
    lines = ["", f"Test accuracy   {accuracy}"]
    if len(suspicious):
        first = min(len(suspicious), _MOST_LABELS)
        of_all = (
            f"the first {first} of {len(suspicious)}, which" if first < len(suspicious) else "which"
        )
        lines.append(
            f"Labels          {of_all} are probably wrong, by models that had not seen the image:"
        )
    else:
        lines.append("Labels          none is probably wrong")
    for row in suspicious[:_MOST_LABELS].tolist():
        best = int(probabilities[row].argmax())
        lines.append(
            f"                {printable(paths[row])}: {printable(classes[best])} "
            f"{probabilities[row, best]:.2f}, {printable(classes[labels[row]])} "
            f"{probabilities[row, labels[row]]:.2f}"
        )
    here = shlex.quote(str(shown))
    lines += [
        f"Page            {shown / 'reports' / 'evaluation' / 'index.html'}",
        "",
        "Next:",
        f"  cd {here}",
        "  headstart predict data/fetched         # classes of images, or of any others",
        "  headstart serve                        # the model behind HTTP",
        "  mlflow ui -w 1                         # the run with all of its figures",
    ]
    return "\n".join(lines)
