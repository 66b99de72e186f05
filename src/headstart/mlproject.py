"""The entry points of MLproject: DVC builds what is missing, params count for this run only.

`mlflow run` opens a run and exports its id; the train stage writes into it. So a pipeline that
DVC would skip because nothing changed has to train once more, or that run would stay empty.
"""

import difflib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from headstart.common import files
from headstart.common.errors import ParamsError, TrackingError
from headstart.common.interrupts import run_command
from headstart.common.paths import Project, project
from headstart.params.whole_file import Params, load_params

# Which stages an entry point ends with; none: the whole pipeline. A run that `mlflow run` opens for
# a model ends with the model as package logs it.
ENTRY_POINTS: dict[str, tuple[str, ...]] = {
    "main": (),
    "extract": ("extract",),
    "search": ("search",),
    "train": ("package",),
    "evaluate": ("package", "evaluate"),
}
_TRAINS = ("main", "train", "evaluate")
# What `mlflow run -P` may say for short; MLproject lists them.
SHORT_NAMES = {
    "source": "data.source",
    "encoders": "extract.encoders",
    "weights": "extract.weights",
    "n_trials": "search.n_trials",
    "metric": "search.metric",
    "learning_rate": "train.learning_rate",
    "weight_decay": "train.weight_decay",
    "epochs": "train.epochs",
    "n_bootstrap": "evaluate.n_bootstrap",
}
# For this version.
_FORMER_NAMES = {"backbone": "extract.encoders", "extract.backbone": "extract.encoders"}


def assignments_of(options: Sequence[str]) -> list[str]:
    """Options as `mlflow run` appends them for `-P name=value`, as `section.field=value`.

    Raises:
        ParamsError: something that is no option with a value.
    """
    names, values = options[::2], options[1::2]
    if len(names) != len(values) or not all(name.startswith("--") for name in names):
        raise ParamsError(f"parameters must be given as -P name=value, but got {' '.join(options)}")
    paths = [name.removeprefix("--") for name in names]
    names_of = SHORT_NAMES | _FORMER_NAMES
    return [f"{names_of.get(p, p)}={value}" for p, value in zip(paths, values, strict=True)]


def run_entry_point(entry_point: str, assignments: Sequence[str]) -> None:
    """Run the pipeline up to the entry point's stages, with `section.field=value` assignments.

    Values equal to params.yaml's change nothing and the workspace is brought up to date; any
    other makes a temporary DVC experiment, so that params.yaml and the workspace stay as they are.

    Raises:
        ParamsError: an unknown entry point or a malformed assignment.
        TrackingError: DVC failed; its own output says why.
    """
    if entry_point not in ENTRY_POINTS:
        raise ParamsError(
            f"an entry point must be one of {', '.join(ENTRY_POINTS)}, but got {entry_point!r}"
        )
    from headstart.tracking.runs import given_run, is_trained_run, open_given_run
    from headstart.tracking.training_runs import run_name

    here = project()
    params = load_params(here.params)
    current = params.model_dump(by_alias=True)
    changed = _changes(current, _parse(current, assignments))
    targets = ENTRY_POINTS[entry_point]
    # A training may resume its own run; whatever else writes only into one that is open.
    run = (given_run if entry_point in _TRAINS else open_given_run)(here)
    model_run = run if entry_point in _TRAINS else None
    if changed:
        # `++`: params.yaml need not have the parameter.
        options = [f"-S++{path}={_hydra(value)}" for path, value in changed.items()]
        _dvc(here, "exp", "run", "--temp", *options, *targets)
        if model_run and not is_trained_run(model_run):
            _dvc(here, "exp", "run", "--temp", "--force", *options, *targets)
    else:
        _dvc(here, "repro", *targets)
        if model_run and not is_trained_run(model_run):
            _dvc(here, "repro", "--force", "--single-item", "train")
            _dvc(here, "repro", *targets)
    if run and not model_run:
        text = f"`dvc repro {entry_point}`, started by `mlflow run`."
        if entry_point == "search":
            text += " The study has a parent run of its own, its trials nested below."
        name = run_name(_with(params, changed), entry_point)
        run.set_tags({"mlflow.runName": name, "headstart.kind": entry_point})
        run.describe(text)
    if model_run and not is_trained_run(model_run):
        raise TrackingError(
            "the run that MLflow opened must be the trained model's, but no stage wrote to it: "
            "run `dvc repro --force train` and look at its output"
        )


def _parse(current: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    parsed = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise ParamsError(f"an assignment must be section.field=value, but got {assignment!r}")
        parsed[path] = _value(path, text, _at(current, path))
    return parsed


def _with(params: Params, changed: Mapping[str, Any]) -> Params:
    values = params.model_dump(mode="json", by_alias=True)
    for path, value in changed.items():
        *sections, field = path.split(".")
        section = values
        for name in sections:
            section = section[name]
        section[field] = value
    return Params.model_validate(values, by_alias=True)


def _value(path: str, text: str, current: Any) -> Any:
    """A value from the command line, read as what stands in params.yaml is."""
    if text.lower() == "none":
        return None
    if isinstance(current, str):
        # Paths and addresses may hold what YAML would take for a comment or a list.
        return text
    try:
        value = files.parse_yaml(text)
    except yaml.YAMLError:
        raise ParamsError(f"{path} must be a YAML value, but got {text!r}") from None
    if isinstance(value, float) and value.is_integer():
        # As `-P seed=3.0`.
        value = int(value)
    return value


def _changes(current: Mapping[str, Any], assigned: Mapping[str, Any]) -> dict[str, Any]:
    return {path: value for path, value in assigned.items() if _at(current, path) != value}


def _at(values: Any, path: str) -> Any:
    for part in path.split("."):
        if not isinstance(values, dict) or part not in values:
            near = difflib.get_close_matches(part, values if isinstance(values, dict) else ())
            hint = f" (did you mean {' or '.join(near)}?)" if near else ""
            raise ParamsError(
                f"an assignment must name a field of params.yaml, but it has no {path}{hint}: "
                f"give it as section.field, or as one of {', '.join(SHORT_NAMES)}"
            )
        values = values[part]
    return values


def _hydra(value: Any) -> str:
    """A value in the grammar of `dvc exp run -S`, where an unquoted comma means several values."""
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{escaped}'"
    return "null" if value is None else str(value)


def _dvc(here: Project, *arguments: str) -> None:
    command = [sys.executable, "-m", "dvc", *arguments]
    if run_command(command, cwd=here.root).returncode != 0:
        raise TrackingError(
            f"`dvc {' '.join(arguments)}` must succeed, but it failed: its output above says why"
        )
