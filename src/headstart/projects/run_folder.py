"""`headstart run`: a folder of images, all the way to what its labels and its model are worth."""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headstart.common import files
from headstart.common.errors import DataError, ParamsError, TrainingError
from headstart.common.interrupts import run_command
from headstart.common.paths import Project
from headstart.common.terminal import printable, say
from headstart.evaluation.error_analysis import likely_label_errors
from headstart.models.predictions import read_predictions
from headstart.params.whole_file import load_params
from headstart.projects.create import DVC, init_project
from headstart.projects.recipes import LOCK
from headstart.reports.summary import accuracy_text

_MOST_LABELS = 10


def run_folder(source: Path, folder: Path | None) -> Project:
    """Run the pipeline of a folder as `run_project` does, and print what came out."""
    project = run_project(source, folder)
    say(what_came_out(project, shown=Path(os.path.relpath(project.root))))
    return project


def run_project(source: Path, folder: Path | None) -> Project:
    """Make a project beside `source`, or resume the one that is there, and run its pipeline.

    Args:
        source: a folder of images, one folder per class.
        folder: of the project; by default the name of `source` with `-headstart` after it.

    Raises:
        DataError: `source` is no folder.
        ParamsError: `folder` holds something else than a project of these images.
        TrainingError: a stage failed; it has said why.
    """
    source = source.absolute()
    if not source.is_dir():
        raise DataError(
            f"`headstart run` takes a folder that has one folder of images per class, but {source} "
            "is not a folder: name one"
        )
    folder = folder or source.with_name(f"{source.name}-headstart")
    if (folder / LOCK).is_file():
        project = Project(folder.absolute())
        own = project.root / load_params(project.params).data.source
        if own.resolve() != source.resolve():
            raise ParamsError(
                f"a project is resumed with its own images, but {folder} is of {own} and "
                f"{source} was given: name another --project, or change data.source in its "
                "params.yaml and run `dvc repro` there"
            )
        say(f"Resuming {printable(folder)}, by its params.yaml.")
    else:
        project = init_project(folder, str(source))
        say(f"Made the project {printable(folder)}.")
    # The stages run by `python`: by the one that runs this.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    # Quiet: a stage says what it did in one line.
    command = [*DVC, "repro", "--quiet"]
    done = run_command(command, cwd=project.root, env={**os.environ, "PATH": path})
    if done.returncode:
        raise TrainingError(
            f"the pipeline in {folder} must run to its end, but a stage stopped, as it says above: "
            "fix it and run the same command again: it resumes there"
        )
    return project


@dataclass(frozen=True)
class LabelIssue:
    """An image whose label is probably wrong, and the class that is predicted instead."""

    path: str
    label: str
    predicted: str
    probability: float


def label_issues(project: Project) -> list[LabelIssue]:
    """Return the images whose labels are probably wrong, worst first.

    Development images are judged by heads that had not seen them, test images by the model.
    """
    parts = [
        read_predictions(project.out_of_fold, "validation"),
        read_predictions(project.predictions, "test"),
    ]
    labels = np.concatenate([part.label_ids for part in parts])
    probabilities = np.concatenate([part.probabilities for part in parts])
    paths = [path for part in parts for path in part.paths]
    classes = parts[0].classes
    found = []
    for row in likely_label_errors(labels, probabilities).tolist():
        best = int(probabilities[row].argmax())
        found.append(
            LabelIssue(
                paths[row], classes[int(labels[row])], classes[best],
                float(probabilities[row, best]),
            )
        )  # fmt: skip
    return found


def what_came_out(project: Project, shown: Path) -> str:
    """Return accuracy, label issues, and what one may do next.

    Args:
        shown: the project's folder as the user reaches it.
    """
    accuracy = accuracy_text(files.read_json(project.metrics))
    issues = label_issues(project)
    lines = ["", f"Test accuracy   {accuracy}"]
    count = f"the first {_MOST_LABELS} of " if len(issues) > _MOST_LABELS else ""
    lines.append(f"Label issues    {count}{len(issues)}")
    lines += [
        f"                {printable(issue.path)}: labelled {printable(issue.label)}, "
        f"predicted {printable(issue.predicted)} {100 * issue.probability:.0f} %"
        for issue in issues[:_MOST_LABELS]
    ]
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
