"""params.yaml, docs/params.md and the JSON schema follow from the classes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tools import params_yaml

from headstart.common.errors import ParamsError
from headstart.common.files import parse_yaml, read_yaml
from headstart.common.paths import Project
from headstart.params.base import Section
from headstart.params.whole_file import Params, former_names, load_params
from headstart.stages.checks import check_possible
from tests.conftest import REPOSITORY

PATH = REPOSITORY / "params.yaml"
SCHEMA = json.loads((REPOSITORY / params_yaml.SCHEMA).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", params_yaml.contents())
def test_the_files_are_those_that_the_classes_give(name: str) -> None:
    written = (REPOSITORY / name).read_text(encoding="utf-8")
    assert written == params_yaml.contents()[name], "run `python tools/params_yaml.py`"


def test_the_file_says_the_defaults_and_its_schema() -> None:
    assert load_params(PATH) == Params()
    first = PATH.read_text(encoding="utf-8").splitlines()[0]
    assert first == f"# yaml-language-server: $schema={params_yaml.SCHEMA}"


def test_the_file_has_at_most_75_values_each_with_a_comment() -> None:
    def count(value: Any) -> int:
        return sum(map(count, value.values())) if isinstance(value, dict) else 1

    assert count(read_yaml(PATH)) <= 75
    bare = [
        line
        for line in PATH.read_text(encoding="utf-8").splitlines()
        if line and not line.lstrip().startswith("#") and not line.endswith(":") and "#" not in line
    ]
    assert bare == []


def _sections(section: type[Section]) -> Iterator[type[Section]]:
    yield section
    for field in section.model_fields.values():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from _sections(inner)


@pytest.mark.parametrize("section", list(_sections(Params)), ids=lambda section: section.__name__)
def test_fields_that_are_set_apart_are_named_as_they_are(section: type[Section]) -> None:
    assert section.rarely_changed <= set(section.model_fields)
    assert set(section.no_longer).isdisjoint(section.model_fields)


def _refusals(text: str) -> list[str]:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    return [error.json_path for error in validator.iter_errors(parse_yaml(text))]


def test_the_schema_holds_for_the_file() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert _refusals(PATH.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "seed: 7",
        "image: {size_px: 64, resampling: lanczos}",
        "train: {epochs: 20, learning_rate: 1e-4}",
        "search: {space: {epochs: 20, width: {choices: [32]}, l2: {low: 0.1, high: 1, log: true}}}",
        "extract: {batch_size: auto, layers: null}",
        "register: {gate: always}",
    ],
)
def test_the_schema_allows_what_the_classes_allow(text: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    load_params(tmp_path / "params.yaml")
    assert _refusals(text) == []


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("sed: 7", "$"),
        ("image: {size: 64}", "$.image"),
        ("image: {size_px: 8}", "$.image.size_px"),
        ("extract: {runtime: torch}", "$.extract.runtime"),
        ("extract: {batch_size: many}", "$.extract.batch_size"),
        ("train: {fine_tune: {enabled: maybe}}", "$.train.fine_tune.enabled"),
        ("search: {space: {width: {choices: []}}}", "$.search.space.width"),
        ("search: {space: {kind: {choices: [forest]}}}", "$.search.space.kind"),
        ("train: {fine_tune: {warmup_fraction: 0.1}}", "$.train.fine_tune"),
    ],
)
def test_the_schema_refuses_what_is_mistaken(text: str, place: str) -> None:
    assert _refusals(text) == [place]


FORMER = """\
data: {max_archive_members: 7}
ingest: {max_file_mb: 5}
train: {batch_size: 16, epochs: 3, fine_tune: {label_smoothing: 0.5}}
"""


def test_former_names_are_read_without_effect_and_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = Project(tmp_path)
    project.params.write_text(FORMER, encoding="utf-8")
    assert load_params(project.params) == Params.model_validate({"train": {"epochs": 3}})
    check_possible(project, "evaluate")
    assert capsys.readouterr().err == (
        "warning: params.yaml has former parameters: "
        "data.max_archive_members (ignored: always 5000000), "
        "ingest.max_file_mb (ignored: always 1000), train.batch_size (ignored: the head's), "
        "train.fine_tune.label_smoothing (ignored: always 0); the next version will refuse them\n"
    )


def test_a_renamed_parameter_is_read_under_its_new_name_and_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = Project(tmp_path)
    project.params.write_text("extract: {backbone: vgg16}\n", encoding="utf-8")
    assert load_params(project.params).extract.encoders == ("vgg16",)
    check_possible(project, "evaluate")
    assert capsys.readouterr().err == (
        "warning: params.yaml has former parameters: extract.backbone (now encoders); "
        "the next version will refuse them\n"
    )
    project.params.write_text("extract: {backbone: vgg16, encoders: vgg16}\n", encoding="utf-8")
    with pytest.raises(ParamsError, match=r"extract\.backbone: unknown"):
        load_params(project.params)


def test_encoders_may_be_named_alone_or_in_a_list(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("extract: {encoders: [vgg16]}\n", encoding="utf-8")
    assert load_params(path).extract.encoder == "vgg16"
    path.write_text("extract: {encoders: vgg16}\n", encoding="utf-8")
    assert load_params(path).extract.encoders == ("vgg16",)
    path.write_text("extract: {encoders: [vgg16, resnet50]}\n", encoding="utf-8")
    assert load_params(path).extract.encoder == "vgg16+resnet50"


def test_nothing_in_the_file_is_a_former_name() -> None:
    assert former_names(PATH) == []
