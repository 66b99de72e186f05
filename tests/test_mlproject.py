"""How the entry points of MLproject hand their parameters to DVC."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from mlflow.projects._project_spec import load_project
from typer.testing import CliRunner

from headstart import mlproject as pipeline
from headstart.cli import app
from headstart.common.errors import ParamsError
from headstart.mlproject import SHORT_NAMES, _at, _changes, _hydra, _parse, assignments_of
from headstart.params.whole_file import Params

CURRENT: dict[str, Any] = Params().model_dump(by_alias=True)


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("seed=3.0", 3),
        ("train.learning_rate=1e-4", 1e-4),
        ("train.learning_rate=none", None),
        ("data.source=my pictures, #2 [new]", "my pictures, #2 [new]"),
        ("extract.weights=10", "10"),
    ],
)
def test_values_are_read_as_params_yaml_has_them(assignment: str, value: object) -> None:
    assert list(_parse(CURRENT, [assignment]).values()) == [value]


def test_equal_values_change_nothing() -> None:
    assert _changes(CURRENT, _parse(CURRENT, ["seed=0", "image.size_px=224"])) == {}


@pytest.mark.parametrize("assignment", ["seed", "=3"])
def test_what_is_no_assignment_is_refused(assignment: str) -> None:
    with pytest.raises(ParamsError, match=r"must be section\.field=value"):
        _parse(CURRENT, [assignment])


def test_unknown_fields_and_broken_values_are_refused() -> None:
    with pytest.raises(ParamsError, match=r"has no train\.eposch"):
        _parse(CURRENT, ["train.eposch=3"])
    with pytest.raises(ParamsError, match=r"seed must be a YAML value, but got '\[1'"):
        _parse(CURRENT, ["seed=[1"])


def test_texts_are_quoted_for_dvc() -> None:
    assert _hydra("a,b's") == "'a,b\\'s'"
    assert _hydra(None) == "null"
    assert _hydra(3) == "3"


@pytest.mark.parametrize("path", SHORT_NAMES.values())
def test_short_names_mean_fields_of_params_yaml(path: str) -> None:
    assert _at(CURRENT, path) is not CURRENT


@pytest.mark.parametrize(
    ("entry_point", "given", "assigned"),
    [
        ("train", {}, []),
        ("main", {}, []),
        ("train", {"learning_rate": "1e-05"}, ["train.learning_rate=1e-05"]),
        ("main", {"seed": "-1", "help": "x"}, ["seed=-1", "help=x"]),
        (
            "main",
            {"source": "my café #1/50%20?x = $HOME"},
            ["data.source=my café #1/50%20?x = $HOME"],
        ),
        ("search", {"search.folds": "5", "n_trials": ""}, ["search.folds=5", "search.n_trials="]),
    ],
)
def test_what_mlflow_run_is_given_and_nothing_else_is_assigned(
    entry_point: str,
    given: dict[str, str],
    assigned: list[str],
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project = load_project(str(repository))  # type: ignore[no-untyped-call]
    command = project.get_entry_point(entry_point).compute_command(given, None)
    environment, python, *words = shlex.split(command)
    assert (environment, python, words[:2]) == ("PYTHONPATH=src", "python", ["-m", "headstart"])
    called: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(pipeline, "run_entry_point", lambda *call: called.append(call))
    done = CliRunner().invoke(app, words[2:])
    assert done.exit_code == 0, done.output
    assert called == [(entry_point, assigned)]


@pytest.mark.parametrize("options", [["--seed"], ["seed", "3"], ["--seed", "3", "x", "4"]])
def test_what_is_no_option_with_a_value_is_refused(options: list[str]) -> None:
    with pytest.raises(ParamsError, match="must be given as -P name=value"):
        assignments_of(options)
