"""Write golden.json anew: `python -m tests.golden.record`. Prints what changed, and by how much."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).with_name("golden.json")


def main() -> None:
    """Run the stages on the golden pictures, compare with the values of before, and write."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from tests.golden.results import golden_results, run_golden_project

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["HEADSTART_CACHE"] = str(root / "cache")
        run_golden_project(root)
        found = golden_results(root)
    before = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else found
    for place, old, new in _changes(before, found, ""):
        print(f"{place}: {old} -> {new}")
    GOLDEN.write_text(_text(found))


def _text(found: dict[str, Any]) -> str:
    """JSON with one line for each row, so that a change shows as the lines that changed."""
    parts = []
    for name, value in found.items():
        if name == "made_with":
            parts.append(f' "{name}": {json.dumps(value)}')
            continue
        nested = name == "out_of_fold_logits"
        groups = value if nested else {"": value}
        inner = []
        for group, rows in groups.items():
            lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in rows.items())
            inner.append(f'  "{group}": {{\n{lines}\n  }}' if nested else lines)
        parts.append(f' "{name}": {{\n' + ",\n".join(inner) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _changes(old: Any, new: Any, place: str) -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            change
            for name in sorted(set(old) | set(new))
            for change in _changes(old.get(name), new.get(name), f"{place}/{name}")
        ]
    return [] if old == new else [(place, old, new)]


if __name__ == "__main__":
    main()
