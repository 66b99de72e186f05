"""Keep the `deps` of dvc.yaml true: each stage lists every first-party file it imports.

    python tools/stage_deps.py            write dvc.yaml
    python tools/stage_deps.py --check    exit 1 and say what is missing or too much

Imports inside functions count. A file that a module names in a string (a template, MLflow's
models-from-code file) counts when it lies beside the module or in its `templates/`.
"""

import ast
import re
import sys
from pathlib import Path

from headstart.files import parse_yaml

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"
# It stops a stage or lets it be, and so changes no output.
WITHOUT_OUTPUT = SOURCE / "headstart" / "checks.py"


def first_party_files(stage: str) -> list[str]:
    """Paths, relative to the root, of all files that the stage's module needs, itself included."""
    waiting = [SOURCE / "headstart" / "stages" / f"{stage}.py"]
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in found or path == WITHOUT_OUTPUT:
            continue
        found.add(path)
        if path.suffix == ".py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            waiting += _packages(path)
            waiting += [f for name in _imported(tree) for f in _files_of(name)]
            waiting += _named_files(tree, path.parent)
        elif path.suffix == ".jinja":
            names = re.findall(r'(?:extends|include|import)\s+"([^"]+)"', path.read_text("utf-8"))
            waiting += [path.parent / name for name in names]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def _imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in names if name.split(".")[0] == "headstart"}


def _files_of(module: str) -> list[Path]:
    base = SOURCE.joinpath(*module.split("."))
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return [path for path in candidates if path.is_file()]


def _packages(path: Path) -> list[Path]:
    parents = [p for p in path.parents if SOURCE in p.parents]
    return [p / "__init__.py" for p in parents if (p / "__init__.py").is_file()]


def _named_files(tree: ast.AST, folder: Path) -> list[Path]:
    names = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"[\w.-]+\.(py|jinja)", node.value)
    }
    places = (folder, folder / "templates")
    return [place / name for name in names for place in places if (place / name).is_file()]


def main() -> int:
    """Write or check dvc.yaml."""
    path = ROOT / "dvc.yaml"
    lines = path.read_text(encoding="utf-8").splitlines()
    wrong = []
    for stage, entry in parse_yaml("\n".join(lines))["stages"].items():
        listed = [dep for dep in entry["deps"] if dep.startswith("src/")]
        wanted = first_party_files(stage)
        if listed != wanted:
            wrong.append(f"{stage}: differs in {sorted(set(listed) ^ set(wanted))}")
            _replace(lines, stage, wanted)
    if wrong and "--check" in sys.argv:
        print("\n".join(wrong), file=sys.stderr)
        return 1
    if wrong:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


def _replace(lines: list[str], stage: str, wanted: list[str]) -> None:
    start = lines.index(f"  {stage}:")
    deps = next(i for i in range(start, len(lines)) if lines[i] == "    deps:")
    end = next(
        (i for i in range(deps + 1, len(lines)) if not lines[i].startswith("      ")), len(lines)
    )
    others = [line for line in lines[deps + 1 : end] if not line.startswith("      - src/")]
    lines[deps + 1 : end] = others + [f"      - {path}" for path in wanted]


if __name__ == "__main__":
    sys.exit(main())
