"""Write what follows from the classes in src/headstart/params/, which declare every parameter once.

python tools/params_yaml.py     params.yaml, that of new projects, docs/params.md and its schema
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from headstart.params.base import Section
from headstart.params.head import HeadConfig
from headstart.params.search_space import SearchSpace
from headstart.params.whole_file import Params

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = "docs/params.schema.json"
TEMPLATE = "src/headstart/projects/template/params.yaml.in"
_HEAD = f"""\
# yaml-language-server: $schema={SCHEMA}
# What people change, with its default and what is allowed. docs/params.md lists the rest, which may
# be added here. An unknown name is an error. Made by tools/params_yaml.py.
"""
# Of a project that `headstart init` makes.
_HEAD_OF_OWN = """\
# What people change, with its default and what is allowed. An unknown name is an error.
"""
_DOCUMENT = """\
# Parameters

Made by `python tools/params_yaml.py` from the classes in `src/headstart/params/`, as
`params.schema.json` is, by which editors complete and check params.yaml.

A parameter that params.yaml does not have keeps its default. Those with a \\* are not in the file,
because few people change them: add them there, or for one experiment with a plus,
`dvc exp run --temp -S +image.resampling=lanczos`."""
_SPACE = """\
`search.default_head` is the first trial, and `search.space` says what the others vary: a value is
fixed; `{choices: [64, 128]}` is one of these; `{low: 0.0, high: 0.6, step: 0.1}` and
`{low: 0.0001, high: 0.01, log: true}` are ranges. What the space leaves out keeps the default
head's value.
"""


def main() -> None:
    """Write the four files."""
    for name, content in contents().items():
        (ROOT / name).write_text(content, encoding="utf-8")


def contents() -> dict[str, str]:
    """Return what each of the files should hold, by its path in the repository."""
    schema = _without_titles(_inlined(Params.model_json_schema(by_alias=True)))
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    params = "\n".join(_lines(Params(), schema, depth=0)) + "\n"
    default = f"source: {Params().data.source}"
    return {
        "params.yaml": _HEAD + params,
        TEMPLATE: _HEAD_OF_OWN + params.replace(default, "source: {{source}}", 1),
        "docs/params.md": "\n".join([_DOCUMENT, *_tables(Params(), schema, "")]) + "\n",
        SCHEMA: json.dumps(schema, indent=1, ensure_ascii=False) + "\n",
    }


def _lines(section: Section, schema: Mapping[str, Any], depth: int) -> Iterator[str]:
    """Yield the lines of params.yaml for a section."""
    indent = "  " * depth
    for key, field, value in _fields(section):
        if depth == 0:
            yield ""
        inner = schema["properties"][key]
        if isinstance(value, Section):
            yield f"{indent}# {_purpose(field, value)}"
            yield f"{indent}{key}:"
            if isinstance(value, SearchSpace):
                yield from _space_lines(value, schema["properties"]["default_head"])
            else:
                yield from _lines(value, inner, depth + 1)
        elif field not in _rarely_changed(section):
            yield f"{indent}{key}: {_flow(value)}{_comment(field, inner)}"


def _space_lines(space: SearchSpace, schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the hyperparameters that the default space varies."""
    for key, field, value in _fields(Params().search.default_head):
        domain = getattr(space, key, value)
        if domain != value:
            yield f"    {key}: {_flow(domain)}{_comment(field, schema['properties'][key])}"


def _tables(section: Section, schema: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Yield docs/params.md below its introduction: a table per section."""
    rows = []
    for key, field, value in _fields(section):
        if not isinstance(value, Section):
            mark = r" \*" if field in _rarely_changed(section) else ""
            allowed, purpose = _allowed(schema["properties"][key]), field.description or ""
            rows.append(f"| `{prefix}{key}`{mark} | {_cell(value)} | {allowed} | {purpose} |")
    if rows:
        heading = prefix.rstrip(".")
        if heading:
            yield f"\n## {heading}\n\n{_docstring(section)}"
        yield "\n| parameter | default | allowed | what it is |\n|---|---|---|---|"
        yield from rows
    former = [f"`{prefix}{name}` ({now})" for name, now in section.no_longer.items()]
    if former:
        yield f"\nNo longer parameters: {', '.join(former)}. They are read without effect."
    for key, _, value in _fields(section):
        if isinstance(value, HeadConfig):
            yield from _hyperparameters(value, schema["properties"][key], f"{prefix}{key}")
        elif isinstance(value, Section) and not isinstance(value, SearchSpace):
            yield from _tables(value, schema["properties"][key], f"{prefix}{key}.")


def _hyperparameters(head: HeadConfig, schema: Mapping[str, Any], name: str) -> Iterator[str]:
    """Yield the table of a head's hyperparameters, with what the default space varies."""
    space = Params().search.space
    yield f"\n## {name} and search.space\n\n{_SPACE}"
    yield "| hyperparameter | default head | default space | allowed | what it is |"
    yield "|---|---|---|---|---|"
    for key, field, value in _fields(head):
        mark = r" \*" if field in _rarely_changed(head) else ""
        domain = getattr(space, key, value)
        varied = _cell(domain) if domain != value else ""
        allowed, purpose = _allowed(schema["properties"][key]), field.description or ""
        yield f"| `{key}`{mark} | {_cell(value)} | {varied} | {allowed} | {purpose} |"


def _fields(section: Section) -> Iterator[tuple[str, FieldInfo, Any]]:
    """Yield each field as it is called in params.yaml, with its default."""
    for name, field in type(section).model_fields.items():
        yield field.alias or name, field, getattr(section, name)


def _rarely_changed(section: Section) -> list[FieldInfo]:
    fields = type(section).model_fields
    return [fields[name] for name in section.rarely_changed]


def _purpose(field: FieldInfo, section: Section) -> str:
    return field.description or _docstring(section).splitlines()[0]


def _docstring(section: Section) -> str:
    return "\n".join(line.strip() for line in (type(section).__doc__ or "").strip().splitlines())


def _comment(field: FieldInfo, schema: Mapping[str, Any]) -> str:
    allowed = _allowed(schema)
    return f"  # {field.description}" + ("" if allowed.startswith("text") else f" ({allowed})")


def _allowed(schema: Mapping[str, Any]) -> str:
    """Say in words what a JSON schema allows."""
    branches = schema.get("anyOf") or schema.get("oneOf")
    if branches:
        return " or ".join(_allowed(branch) for branch in branches)
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return ", ".join(schema["enum"])
    match schema["type"]:
        case "integer" | "number":
            return _bounds(schema)
        case "boolean":
            return "true, false"
        case "array":
            return f"a list of {_allowed(schema['items'])}"
        case "string":
            return "text"
    return str(schema["type"])


def _bounds(schema: Mapping[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    lower = f"{low:,}" if low is not None else f"above {above:,}"
    if high is not None:
        return f"{lower} to {high:,}"
    if below is not None:
        return f"{lower} to below {below:,}"
    return lower if low is None else f"at least {lower}"


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        # What a domain leaves open is not said.
        dumped = value.model_dump(mode="json").items()
        return {key: v for key, v in dumped if v is not None and v is not False}
    return list(value) if isinstance(value, tuple) else value


def _flow(value: Any) -> str:
    flow = yaml.safe_dump(_plain(value), default_flow_style=True, width=10_000, sort_keys=False)
    return flow.removesuffix("\n").removesuffix("...").strip()


def _cell(value: Any) -> str:
    return f"`{_flow(value)}`"


def _inlined(schema: Any) -> Any:
    """Return a schema with its definitions in the places that refer to them.

    Definitions are named after types, of which some are unreadable.
    """
    definitions = schema.pop("$defs")

    def resolve(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                node = {**definitions[node["$ref"].rpartition("/")[2]], **node}
                del node["$ref"]
            return {key: resolve(value) for key, value in node.items()}
        return [resolve(item) for item in node] if isinstance(node, list) else node

    return resolve(schema)


def _without_titles(node: Any) -> Any:
    """Return a schema without the titles that pydantic makes of names."""
    if isinstance(node, dict):
        return {
            key: _without_titles(value)
            for key, value in node.items()
            if not (key == "title" and isinstance(value, str))
        }
    return [_without_titles(item) for item in node] if isinstance(node, list) else node


if __name__ == "__main__":
    main()
