"""Reading params.yaml: every mistake in one message, each with its path and what is allowed."""

import difflib
import re
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from headstart.common.errors import ParamsError
from headstart.common.files import read_yaml
from headstart.params.base import Section

S = TypeVar("S", bound=Section)


def load_sections(path: Path, sections: type[S]) -> S:
    """Read and check what `sections` declares, and nothing else.

    A stage declares its sections as a `Section` whose fields are named like those of params.yaml;
    they are exactly the `params` of its entry in dvc.yaml (a test holds this). A section that the
    file leaves out has its defaults.

    Raises:
        ParamsError: naming every mistake in these sections, with its path and what is allowed.
    """
    raw = read_mapping(path)
    declared = {field.alias or name: field for name, field in sections.model_fields.items()}
    chosen = {name: value for name, value in raw.items() if name in declared}
    for name, field in declared.items():
        if any(_models(field.annotation)):
            chosen.setdefault(name, {})
    return validate(path, sections, chosen)


def read_mapping(path: Path) -> dict[str, Any]:
    """Read the file, unchecked.

    Raises:
        ParamsError: it does not exist, is no YAML or holds something else than sections.
    """
    try:
        raw = read_yaml(path)
    except FileNotFoundError:
        raise ParamsError(f"{path.name} must exist, but {path} does not: restore it") from None
    except yaml.YAMLError as error:
        raise ParamsError(f"{path.name} must be YAML, but it cannot be read: {error}") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ParamsError(f"{path.name} must hold sections, but got a {type(raw).__name__}")
    return raw


def validate(path: Path, sections: type[S], raw: dict[str, Any]) -> S:
    """Return the values as `sections`; `path` is named in the error.

    Raises:
        ParamsError: naming every mistake at once, with its path and what is allowed.
    """
    try:
        # Only by the names of the file: code and model metadata may say `size`, the file must not.
        return sections.model_validate(raw, by_alias=True, by_name=False)
    except ValidationError as error:
        mistakes = [_describe(detail, raw, sections) for detail in error.errors()]
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        raise ParamsError("\n  ".join([f"{count} in {path.name}:", *mistakes])) from None


def _describe(detail: ErrorDetails, raw: dict[str, Any], sections: type[BaseModel]) -> str:
    # tags of unions that choose by form are written <tag>
    path = [str(part) for part in detail["loc"] if not str(part).startswith("<")]
    while len(path) > 1 and not _is_container(raw, path[:-1]):
        # pydantic names the branch of a union as if it were a key
        path.pop()
    where = ".".join(path) or "the file"
    if detail["type"] == "extra_forbidden":
        allowed = _siblings(path, sections)
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


def _siblings(path: list[str], model: type[BaseModel]) -> list[str]:
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
