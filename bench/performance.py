"""docs/performance.md from bench/results/*.json.

python -m bench.performance
"""

import json
from typing import Any

from bench.common import RESULTS

DOCUMENT = RESULTS.parent.parent / "docs" / "performance.md"
_HEAD = """# Performance

Made from `bench/results/*.json` by `python -m bench.performance`; the figures are those files'.
Each bench prints its table, with peers measured side by side in the same run. Machines are shared
and noisy: read ratios rather than seconds.
"""


def main() -> None:
    """Write the document."""
    results = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(RESULTS.glob("*.json"))]
    DOCUMENT.write_text("\n".join([_HEAD, *map(_section, results)]), encoding="utf-8")


def _section(result: dict[str, Any]) -> str:
    lines = [f"## bench/{result['name']}.py", "", f"Measured on {result['machine']}.", ""]
    lines += _table(result["headers"], result["rows"])
    if result["targets"]:
        lines += ["", "Targets:", ""]
        rows = [
            [
                t["name"],
                t["value"],
                f"{t['sense']} {t['target']:g} {t['unit']}",
                "met" if t["met"] else "**missed**",
            ]
            for t in result["targets"]
        ]
        lines += _table(["what", "measured", "target", ""], rows)
    return "\n".join([*lines, ""])


def _table(headers: list[str], rows: list[list[Any]]) -> list[str]:
    return [
        "| " + " | ".join(headers) + " |",
        "|" + "---|" * len(headers),
        *("| " + " | ".join(map(_cell, row)) + " |" for row in rows),
    ]


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
