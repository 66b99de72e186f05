"""The rules that keep the rooms apart, and dvc.yaml, params.yaml and MLproject true."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from headstart.mlproject import ENTRY_POINTS, SHORT_NAMES
from headstart.params.whole_file import Params

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "headstart"

# A room may import those before it, never those after it.
ROOMS = (
    "common", "params", "sources", "cache", "images", "dataset", "encoders", "features", "heads",
    "search", "models", "training", "evaluation", "tracking", "serving", "reports", "projects",
    "stages",
)  # fmt: skip
ORDER = {room: index for index, room in enumerate(ROOMS)}
# Modules beside the rooms.
BESIDE = ("__init__", "__main__", "cli", "mlproject")
# Which libraries only some places may import: (library, module path prefixes).
ONLY_IN = {
    "mlflow": ("tracking/", "serving/"),
    "optuna": ("search/", "reports/search"),
    "typer": ("cli",),
}
# The names that every stage has; see stages/__init__.py.
OF_EVERY_STAGE = {"Sections", "run", "summary"}
# Names that still mean two things.
SHARED_NAMES = {
    "gather", "inspect", "read_json", "reproduce", "summary", "sync",
}  # fmt: skip
# What must never be loaded by `headstart --help`.
HEAVY = ("tensorflow", "keras", "mlflow", "optuna", "pandas", "h5py", "matplotlib", "sklearn")


def _modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def _imports(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def test_imports_go_one_way() -> None:
    wrong = []
    for name, tree in _modules():
        room = name.split("/")[0].removesuffix(".py")
        for imported in _imports(tree):
            parts = imported.split(".")
            if parts[0] != "headstart" or len(parts) < 2:
                continue
            target = parts[1]
            if room in ORDER and ORDER.get(target, -1) > ORDER[room]:
                wrong.append(f"{name} imports {imported}")
            elif target == "stages" and room != "stages":
                wrong.append(f"{name} imports a stage: {imported}")
            elif target == "reports" and room not in ("reports", "projects", "stages", "cli"):
                wrong.append(f"{name} imports {imported}")
    assert wrong == []


def test_everything_that_is_printed_goes_through_terminal() -> None:
    """There credentials are taken out and control characters escaped."""
    printing = [
        name
        for name, tree in _modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (ast.unparse(node.func) in ("print", "sys.stdout.write", "sys.stderr.write"))
    ]
    assert printing == ["common/json_output.py", "common/terminal.py"]


def test_no_stage_is_imported_by_another() -> None:
    for name, tree in _modules():
        stages = {i for i in _imports(tree) if i.startswith("headstart.stages.")}
        shared = ("headstart.stages.run_stage", "headstart.stages.checks")
        others = {i for i in stages if not i.startswith(shared)}
        assert others == set(), name


@pytest.mark.parametrize("library", ONLY_IN)
def test_libraries_stay_in_their_rooms(library: str) -> None:
    wrong = [
        name
        for name, tree in _modules()
        if any(i.split(".")[0] == library for i in _imports(tree))
        and not name.startswith(ONLY_IN[library])
    ]
    assert wrong == []


def test_the_command_line_loads_nothing_heavy() -> None:
    code = "import sys, headstart.cli; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert set(loaded.stdout.split()).isdisjoint(HEAVY)


def _stages() -> dict[str, dict[str, Any]]:
    stages: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    return stages


@pytest.mark.parametrize("stage", _stages())
def test_a_stage_names_exactly_the_sections_it_reads(stage: str) -> None:
    sections = importlib.import_module(f"headstart.stages.{stage}").Sections
    read = {field.alias or name for name, field in sections.model_fields.items()}
    assert set(_stages()[stage].get("params", [])) == read


def _files_of(module: str) -> list[Path]:
    base = PACKAGE.parent.joinpath(*module.split("."))
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return [path for path in candidates if path.is_file()]


def _imported_by(stage: str) -> set[str]:
    """Paths, below the package, of what a stage imports, directly and through others."""
    waiting, found = [PACKAGE / "stages" / f"{stage}.py"], set()
    # These see all of params.yaml and change no output: the one stops a stage or lets it run, the
    # other is for that check and for what MLflow is to know of a run.
    without_output = (PACKAGE / "stages" / "checks.py", PACKAGE / "params" / "whole_file.py")
    while waiting:
        path = waiting.pop()
        if path not in found and path not in without_output:
            found.add(path)
            tree = ast.parse(path.read_text(encoding="utf-8"))
            names = {name for name in _imports(tree) if name.startswith("headstart.")}
            waiting += [file for name in names for file in _files_of(name)]
        if path == PACKAGE / "serving" / "package.py":
            # Not imported, but packed: MLflow runs this file.
            waiting.append(path.with_name("pyfunc_model.py"))
    if PACKAGE / "reports" / "html.py" in found:
        found.add(PACKAGE / "reports" / "templates")
    return {path.relative_to(PACKAGE).as_posix() for path in found}


@pytest.mark.parametrize("stage", _stages())
def test_a_stage_depends_on_every_room_it_imports(stage: str) -> None:
    own = "src/headstart/"
    listed = {d.removeprefix(own) for d in _stages()[stage]["deps"] if d.startswith(own)}
    imported = _imported_by(stage)
    assert {dep for dep in listed if not any(i.startswith(dep) for i in imported)} == set()
    imported -= {"__init__.py", "params/__init__.py", "stages/__init__.py"}
    assert {i for i in imported if not any(i.startswith(dep) for dep in listed)} == set()


def test_no_module_stands_beside_the_rooms() -> None:
    beside = {path.stem for path in PACKAGE.glob("*.py")}
    assert beside == set(BESIDE)
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ROOMS)


def test_library_upgrades_run_again_what_computes_or_names_them() -> None:
    for stage in ("extract", "train", "package"):
        assert {"requirements/cpu.txt", "requirements/gpu.txt"} <= set(_stages()[stage]["deps"])


def test_no_param_is_named_as_dvcs_run_cache_ignores() -> None:
    """DVC leaves `size` and `nfiles` out of what it compares, wherever the keys stand.

    A stage whose param of that name changed would be given its old outputs back.
    """

    def keys(values: Any) -> set[str]:
        if not isinstance(values, dict):
            return set()
        return set(values).union(*(keys(value) for value in values.values()))

    assert keys(Params().model_dump(by_alias=True)).isdisjoint({"size", "nfiles"})


def test_mlproject_leaves_defaults_to_params_yaml() -> None:
    text = (ROOT / "MLproject").read_text(encoding="utf-8")
    points = yaml.safe_load(text)["entry_points"]
    assert points.pop("reproduce")["parameters"] == {"run": {"type": "string"}}
    assert set(points) == set(ENTRY_POINTS)
    assert [name for name, entry in points.items() if "parameters" in entry] == []
    listed = re.search(r"by short names:\n# (.*)\.", text)
    assert listed is not None
    assert listed.group(1).split(", ") == list(SHORT_NAMES)


def test_no_class_or_public_function_shares_its_name() -> None:
    defined: dict[str, list[str]] = {}
    for module, tree in _modules():
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                of_a_stage = node.name in OF_EVERY_STAGE and module.startswith("stages/")
                if not of_a_stage and node.name not in SHARED_NAMES:
                    defined.setdefault(node.name, []).append(module)
    assert {name: where for name, where in defined.items() if len(where) > 1} == {}


@pytest.mark.parametrize("stage", _stages())
def test_every_stage_has_the_same_three_names(stage: str) -> None:
    assert set(dir(importlib.import_module(f"headstart.stages.{stage}"))) >= OF_EVERY_STAGE


def test_every_file_has_a_test_file() -> None:
    listed: dict[str, list[str]] = {}
    for line in (ROOT / "tests" / "README.md").read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"\| (`.*`) \| (.*) \|", line):
            for pattern in re.findall(r"`([^`]+)`", match.group(1)):
                files = list(PACKAGE.glob(pattern))
                assert files, f"tests/README.md: there is no {pattern}"
                for file in files:
                    own = re.findall(r"`([^`]+)`", match.group(2))
                    listed[file.relative_to(PACKAGE).as_posix()] = own
    for source, tests in listed.items():
        assert [t for t in tests if not (ROOT / "tests" / t).exists()] == [], source
    for module, _ in _modules():
        room, _, name = module.rpartition("/")
        if room and name != "__init__.py":
            own_test = ROOT / "tests" / room / f"test_{name}"
            assert own_test.exists() or module in listed, f"no test file of {module}"
            assert not (own_test.exists() and module in listed and room != "params"), module


def test_no_function_is_over_90_lines() -> None:
    long = []
    for name, tree in _modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                long += [f"{name}: {node.name} has {length} lines"] if length > 90 else []
    assert long == []


def test_no_download_address_is_tracked() -> None:
    hosts = re.compile("|".join(["pypi" + r"\.org", "pythonhosted" + r"\.org", "npmjs" + r"\."]))
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    found = []
    for name in filter(None, listed):
        path = ROOT / name
        if path.is_file() and path.stat().st_size < 2_000_000:
            text = path.read_bytes().decode(errors="ignore")
            found += [name] if hosts.search(text) else []
    assert found == []


def test_yaml_is_read_in_one_way() -> None:
    """Numbers as YAML 1.1 and 1.2 write them; MLmodel is PyYAML's own."""
    reading = {
        name
        for name, tree in _modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("yaml.safe_load", "yaml.load")
    }
    assert reading == {"common/files.py", "serving/package.py", "tracking/offline_runs.py"}


def test_what_is_no_code_is_installed_too() -> None:
    """Files that pyproject.toml does not name would be missing from a wheel."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["headstart"]
    packaged = {file for pattern in patterns for file in PACKAGE.glob(pattern) if file.is_file()}
    others = {
        file
        for file in PACKAGE.rglob("*")
        if file.is_file() and file.suffix != ".py" and "__pycache__" not in file.parts
    }
    assert others - packaged == set()
    assert all(any(PACKAGE.glob(pattern)) for pattern in patterns)
