"""How the entry points of MLproject hand their parameters to DVC."""

from typing import Any

import pytest

from headstart.errors import ParamsError
from headstart.params import Params
from headstart.pipeline import _changes, _hydra, _parse

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
