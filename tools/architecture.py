"""The list of files in ARCHITECTURE.md: one line for each, the first of its docstring.

    python tools/architecture.py        write it

tests/test_docs.py holds it to the disk.
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "headstart"
DOCUMENT = ROOT / "ARCHITECTURE.md"
START = "<!-- files: made by tools/architecture.py -->\n"


def text() -> str:
    """Return ARCHITECTURE.md as it should be."""
    before = DOCUMENT.read_text(encoding="utf-8").split(START)[0]
    lines = ["", *_lines(PACKAGE)]
    rooms = [path.parent for path in PACKAGE.glob("*/__init__.py")]
    for room in sorted(rooms):
        lines += ["", f"**{room.name}/** {_first_line(room / '__init__.py')}", "", *_lines(room)]
    return before + START + "\n".join(lines) + "\n"


def _lines(folder: Path) -> list[str]:
    paths = sorted(path for path in folder.glob("*.py") if path.stem != "__init__")
    return [f"- `{path.name}`: {_first_line(path)}" for path in paths]


def _first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    # The first sentence may be wrapped.
    return " ".join(docstring.partition("\n\n")[0].split())


def main() -> int:
    """Write the document."""
    DOCUMENT.write_text(text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
