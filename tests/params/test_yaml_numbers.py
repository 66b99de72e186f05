"""Numbers in YAML read back as they were written, whoever wrote them."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from dvc.utils.serialize import dump_yaml, load_yaml, modify_yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from headstart.common.errors import ParamsError
from headstart.common.files import parse_yaml, read_yaml
from headstart.mlproject import _hydra, _parse
from headstart.params.whole_file import load_params
from headstart.sources.arrays import read_spec


def _by_ruamel(version: tuple[int, int]) -> Callable[[Any], str]:
    def write(value: Any) -> str:
        writer = YAML(typ="rt")
        writer.version = version
        buffer = io.StringIO()
        writer.dump({"value": value}, buffer)
        return buffer.getvalue().partition("---\n")[2].partition(":")[2]

    return write


WRITERS: dict[str, Callable[[Any], str]] = {
    "pyyaml": yaml.safe_dump,
    "ruamel, YAML 1.1": _by_ruamel((1, 1)),
    "ruamel, YAML 1.2": _by_ruamel((1, 2)),
    "json": json.dumps,
    "str": str,
    "repr in capitals": lambda value: repr(value).upper(),
    "with a sign": lambda value: f"{value:+}",
    "exponent": lambda value: f"{value:.17e}" if isinstance(value, float) else f"{value}e0",
    "shortest": lambda value: f"{value:.17g}",
    "grouped": lambda value: f"{value:_}",
    "no leading zero": lambda value: (
        repr(value).replace("0.", ".", 1)
        if repr(value).lstrip("-").startswith("0.")
        else repr(value)
    ),
}
_FINITE = st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize("writer", WRITERS)
@given(value=st.integers(-(10**15), 10**15) | _FINITE)
def test_a_number_reads_back_equal(writer: str, value: float) -> None:
    found = parse_yaml(WRITERS[writer](value))
    assert isinstance(found, int | float)
    assert not isinstance(found, bool)
    assert found == value


@given(value=st.integers(-(2**40), 2**40))
def test_whole_numbers_of_other_bases_read_back_equal(value: int) -> None:
    for text in (f"{value:#x}", f"{value:#o}", f"{value:#b}", f"{value:#X}".replace("0X", "0x")):
        assert parse_yaml(text) == value


def _by_dvc(folder: Path, value: Any) -> dict[str, Any]:
    """A params.yaml as `dvc exp run -S train.weight_decay=… -S train.learning_rate=…` leaves it."""
    path = folder / "params.yaml"
    path.write_text("# kept\ntrain:\n  weight_decay: 0.1  # why\n  learning_rate: 1.0\n")
    with modify_yaml(str(path)) as params:
        params["train"]["weight_decay"] = params["train"]["learning_rate"] = value
    return {"path": path, "train": load_params(path).train}


@given(value=st.floats(1e-300, 1e300))
def test_dvc_and_we_read_the_same_of_what_dvc_writes(
    tmp_path_factory: pytest.TempPathFactory, value: float
) -> None:
    folder = tmp_path_factory.mktemp("dvc")
    found = _by_dvc(folder, value)
    assert found["train"].weight_decay == found["train"].learning_rate == value
    assert load_yaml(str(found["path"])) == read_yaml(found["path"])
    dump_yaml(str(folder / "dvc.lock"), {"params": {"train.weight_decay": value}})
    assert read_yaml(folder / "dvc.lock") == {"params": {"train.weight_decay": value}}


@settings(max_examples=10)
@given(value=st.floats(1e-300, 1e300))
def test_an_override_reaches_params_yaml_unchanged(
    tmp_path_factory: pytest.TempPathFactory, value: float
) -> None:
    """What `mlflow run -P` hands to `dvc exp run -S`, in DVC's own code."""
    path = tmp_path_factory.mktemp("override") / "params.yaml"
    path.write_text("train:\n  weight_decay: 0.1\n")
    apply_overrides(str(path), [f"train.weight_decay={_hydra(value)}"])
    assert load_params(path).train.weight_decay == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-05", 1e-5),
        ("1E5", 1e5),
        ("5.", 5.0),
        (".5", 0.5),
        ("+1", 1),
        ("1_000", 1000),
        ("1_000.5", 1000.5),
        # where YAML 1.1 and 1.2 differ: as DVC reads it
        ("010", 10),
        ("0o10", 8),
        ("1:30", "1:30"),
        ("2026-11-26", "2026-11-26"),
        ("yes", "yes"),
        ("no", "no"),
        # what is text is text
        ("'1e-05'", "1e-05"),
        ("1e", "1e"),
        ("0x", "0x"),
        ("1.2.3", "1.2.3"),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        ("~", None),
    ],
)
def test_notations(text: str, value: object) -> None:
    assert parse_yaml(text) == value
    assert type(parse_yaml(text)) is type(value)


def _params(folder: Path, text: str) -> Any:
    path = folder / "params.yaml"
    path.write_text(text)
    return load_params(path)


def test_a_params_yaml_that_dvc_has_written_is_read(tmp_path: Path) -> None:
    """The state in which `-S train.weight_decay=0.00001` left the file for good."""
    params = _params(
        tmp_path, "train: {weight_decay: 1e-05}\nsearch: {space: {l2: {low: 1e-4, high: 1E0}}}\n"
    )
    assert params.train.weight_decay == 1e-5
    assert (params.search.space.l2.low, params.search.space.l2.high) == (1e-4, 1.0)


def test_whole_numbers_may_be_floats_and_floats_whole(tmp_path: Path) -> None:
    params = _params(
        tmp_path,
        "seed: 3.0\n"
        "search: {n_trials: 2e1, timeout_s: 60, space: {width: {choices: [64.0, 1.28e2]}}}\n"
        "train: {fine_tune: {enabled: yes, flip: Off}}\n",
    )
    assert (params.seed, params.search.n_trials) == (3, 20)
    assert params.search.space.width.choices == (64, 128)
    assert type(params.search.timeout_s) is float
    assert (params.train.fine_tune.enabled, params.train.fine_tune.flip) == (True, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("search: {n_trials: 2.5}", "search.n_trials: .* valid integer, but got 2.5"),
        ("search: {n_trials: .inf}", "search.n_trials: .* but got inf"),
        ("train: {learning_rate: .nan}", "train.learning_rate: .* but got nan"),
        ("train: {learning_rate: 1e999}", "train.learning_rate: .* but got inf"),
        ("train: {epochs: 1:30}", "train.epochs: .* but got '1:30'"),
        ("train: {learning_rate: '1e-05'}", "write the number without quotes"),
        ("train: {fine_tune: {enabled: 1}}", "train.fine_tune.enabled: .* boolean, but got 1"),
        ("seed: " + "9" * 5000, "params.yaml must be YAML, but .*digits"),
    ],
)
def test_what_is_no_number_of_the_kind_is_told(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ParamsError, match=f"(?s){message}"):
        _params(tmp_path, text)


@given(value=st.floats(1e-9, 1.0))
def test_mlflows_parameters_are_read_alike(value: float) -> None:
    current = {"train": {"weight_decay": None}}
    for text in (str(value), f"{value:.20f}", f"{value:e}".upper()):
        assert _parse(current, [f"train.weight_decay={text}"]) == {
            "train.weight_decay": float(text)
        }


def test_a_spec_file_takes_any_notation_too(tmp_path: Path, repository: Path) -> None:
    spec = (repository / "data/sources/animal-silhouettes.yaml").read_text()
    path = tmp_path / "spec.yaml"
    path.write_text(spec.replace("images_per_class: 150", "images_per_class: 1.5e2"))
    assert read_spec(path).images_per_class == 150
