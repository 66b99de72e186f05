"""Reading params.yaml: every mistake in one message, each with its path and what is allowed."""

import difflib
import re
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails

from headstart.common.errors import ParamsError
from headstart.common.files import read_yaml
from headstart.params.base import Section
from headstart.params.evaluate import EvaluateParams, RegisterParams
from headstart.params.extract import ExtractParams
from headstart.params.images import DataParams, ImageParams, IngestParams, PackParams
from headstart.params.search import SearchParams
from headstart.params.train import TrainParams

S = TypeVar("S", bound=Section)


class Params(Section):
    """All of params.yaml. Stages do not see this, only the sections they declare."""

    seed: int = Field(0, ge=0, lt=2**32)
    image: ImageParams = Field(default_factory=ImageParams)
    data: DataParams = Field(default_factory=DataParams)
    ingest: IngestParams = Field(default_factory=IngestParams)
    pack: PackParams = Field(default_factory=PackParams)
    extract: ExtractParams = Field(default_factory=ExtractParams)
    search: SearchParams = Field(default_factory=SearchParams)
    train: TrainParams = Field(default_factory=TrainParams)
    evaluate: EvaluateParams = Field(default_factory=EvaluateParams)
    register_: RegisterParams = Field(default_factory=RegisterParams, alias="register")


def load_params(path: Path) -> Params:
    """Read and check the whole file.

    Raises:
        ParamsError: naming every mistake at once, with its path and what is allowed.
    """
    try:
        raw = read_yaml(path)
    except FileNotFoundError:
        raise ParamsError(f"{path.name} must exist, but {path} does not: restore it") from None
    except yaml.YAMLError as error:
        raise ParamsError(f"{path.name} must be YAML, but it cannot be read: {error}") from None
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise ParamsError(f"{path.name} must hold sections, but got a {type(raw).__name__}")
    try:
        # Only by the names of the file: code and model metadata may say `size`, the file must not.
        return Params.model_validate(raw, by_alias=True, by_name=False)
    except ValidationError as error:
        mistakes = [_describe(detail, raw) for detail in error.errors()]
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        raise ParamsError("\n  ".join([f"{count} in {path.name}:", *mistakes])) from None


def load_sections(path: Path, sections: type[S]) -> S:
    """Check the whole file, and return only what `sections` declares.

    A stage declares its sections as a `Section` whose fields are named like those of params.yaml;
    they are exactly the `params` of its entry in dvc.yaml (a test holds this).
    """
    params = load_params(path)
    chosen = {
        field.alias or name: getattr(params, name)
        for name, field in Params.model_fields.items()
        if name in sections.model_fields
    }
    return sections.model_validate(chosen)


def _describe(detail: ErrorDetails, raw: dict[str, Any]) -> str:
    # tags of unions that choose by form are written <tag>
    path = [str(part) for part in detail["loc"] if not str(part).startswith("<")]
    while len(path) > 1 and not _is_container(raw, path[:-1]):
        # pydantic names the branch of a union as if it were a key
        path.pop()
    where = ".".join(path) or "the file"
    if detail["type"] == "extra_forbidden":
        allowed = _siblings(path)
        hint = _did_you_mean(path[-1], allowed)
        return f"{where}: unknown; allowed here: {', '.join(allowed) or 'nothing'}{hint}"
    message = detail["msg"].removeprefix("Value error, ")
    given = detail["input"]
    if isinstance(given, dict | BaseModel):
        return f"{where}: {message}"
    hint = " (a text: write the number without quotes)" if _looks_like_number(given) else ""
    if detail["type"] == "literal_error":
        named = re.findall("'([^']*)'", str(detail.get("ctx", {}).get("expected", "")))
        hint = _did_you_mean(str(given), named)
    return f"{where}: {message}, but got {given!r}{hint}"


def _did_you_mean(given: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(given.lower(), names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _is_container(raw: Any, parents: list[str]) -> bool:
    """Whether the value of the file at `parents` is a mapping or a list."""
    for part in parents:
        if isinstance(raw, list):
            raw = raw[int(part)] if part.isdigit() and int(part) < len(raw) else None
        else:
            raw = raw.get(part) if isinstance(raw, dict) else None
    return isinstance(raw, dict | list)


def _looks_like_number(given: object) -> bool:
    if not isinstance(given, str):
        return False
    try:
        float(given)
    except ValueError:
        return False
    return True


def _siblings(path: list[str]) -> list[str]:
    model: type[BaseModel] = Params
    for part in path[:-1]:
        field = next((f for n, f in model.model_fields.items() if part in (n, f.alias)), None)
        inner = next(_models(field.annotation), None) if field else None
        if inner is None:
            return []
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, Annotated):
        for part in get_args(annotation):
            yield from _models(part)
