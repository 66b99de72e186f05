"""Write params.yaml from the defaults in src/headstart/params/, each with its description.

python tools/params_yaml.py
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from headstart.params.whole_file import Params

PATH = Path(__file__).resolve().parent.parent / "params.yaml"
_HEAD = "# Every choice there is, with its default; docs/ say more. Unknown names are errors.\n"


def main() -> None:
    """Write the file."""
    PATH.write_text(text(), encoding="utf-8")


def text() -> str:
    """What params.yaml should hold."""
    return _HEAD + "\n".join(_lines(Params(), 0)) + "\n"


def _lines(model: BaseModel, depth: int) -> Iterator[str]:
    dumped = model.model_dump(mode="json", by_alias=True)
    for name, field in type(model).model_fields.items():
        key = field.alias or name
        value = getattr(model, name)
        indent = "  " * depth
        if depth == 0:
            yield ""
        if isinstance(value, BaseModel) and depth < 2:
            doc = (type(value).__doc__ or "").strip().splitlines()[0]
            yield f"{indent}# {doc}" if depth == 0 else f"{indent}# {field.description or doc}"
            yield f"{indent}{key}:"
            yield from _lines(value, depth + 1)
        else:
            comment = f"  # {field.description}" if field.description else ""
            yield f"{indent}{key}: {_flow(dumped[key])}{comment}"


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        # What a domain leaves open is not said.
        value = {k: v for k, v in value.items() if v is not None and v is not False}
    flow = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
    return flow.removesuffix("\n").removesuffix("...").strip()


if __name__ == "__main__":
    main()
