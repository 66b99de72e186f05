"""Documents that cannot drift: commands, stages, parameters and the annotated tree."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from bench.performance import accuracy_text, performance_text, speed_text
from tools import architecture

from headstart.cli import app

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = "\n".join(
    path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", ROOT / "data" / "README.md", *(ROOT / "docs").glob("*.md")]
)


def _commands() -> Iterator[str]:
    for command in app.registered_commands:
        if not command.hidden and command.callback is not None:
            yield command.name or command.callback.__name__.replace("_", "-").rstrip("-")
    for group in app.registered_groups:
        yield str(group.name)


@pytest.mark.parametrize("command", list(_commands()))
def test_every_command_is_documented(command: str) -> None:
    assert f"headstart {command}" in DOCS


def test_every_command_that_is_named_exists() -> None:
    sources = (
        *(ROOT / "src").rglob("*.py"),
        *(ROOT / "src").rglob("*.jinja"),
        ROOT / "params.yaml",
    )
    texts = [DOCS, *(path.read_text(encoding="utf-8") for path in sources)]
    named = {name for text in texts for name in re.findall(r"`headstart ([a-z][a-z-]*)", text)}
    assert {"serve", "predict", "encoders"} <= named
    assert named <= set(_commands())


def _parameters(section: Any, prefix: str = "") -> Iterator[str]:
    for name, value in section.items():
        # The fields of heads and of the space are explained as a table of docs/search.md.
        if isinstance(value, dict) and f"{prefix}{name}" not in ("search.space",):
            yield from _parameters(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


PARAMETERS = list(_parameters(yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))))


def test_every_parameter_is_documented() -> None:
    missing = [
        p for p in PARAMETERS if f"`{p}`" not in DOCS and f"`{p.split('.')[-1]}`" not in DOCS
    ]
    assert missing == []


@pytest.mark.parametrize(
    "stage", yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
)
def test_every_stage_is_documented(stage: str) -> None:
    assert re.search(rf"\b{stage}\b", README + (ROOT / "ARCHITECTURE.md").read_text("utf-8"))


def test_the_annotated_tree_is_on_the_disk() -> None:
    block = README.split("<!-- tree -->")[1].split("```")[1]
    parent = ""
    listed = set()
    for line in block.strip("\n").splitlines():
        name = line.split()[0]
        path = f"{parent}{name}" if line.startswith(" ") else name
        if not line.startswith(" "):
            parent = name
        assert (ROOT / path).exists(), f"README names {path}"
        listed.add(path.rstrip("/"))
    rooms = {
        f"src/headstart/{path.name}"
        for path in (ROOT / "src" / "headstart").iterdir()
        if path.is_dir() and (path / "__init__.py").exists()
    }
    assert rooms <= listed


@pytest.mark.parametrize("command", ["sed -i ", "base64 -w", "readlink -f", "grep -P", "stat -c"])
def test_commands_are_not_of_gnu_alone(command: str) -> None:
    assert command not in DOCS


def test_links_lead_somewhere() -> None:
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "data" / "README.md"]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_the_accuracy_table_is_the_measured_one() -> None:
    result = json.loads((ROOT / "bench/results/accuracy.json").read_text(encoding="utf-8"))
    assert len(result["rows"]) >= 3
    for row in result["rows"]:
        accuracy, deviation = 100 * row[1], 100 * row[2]
        assert f"{accuracy:.1f} ± {deviation:.1f} %" in README, row


def test_what_the_readme_says_of_accuracy_and_speed_is_the_measured() -> None:
    assert accuracy_text() in README, "run `make performance`"
    assert speed_text() in README, "run `make performance`"


def test_performance_is_one_screen_made_from_the_results() -> None:
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert text == performance_text(), "run `make performance`"
    assert len(text.splitlines()) <= 45


def test_measurements_are_made_from_the_results() -> None:
    text = (ROOT / "docs" / "measurements.md").read_text(encoding="utf-8")
    for path in (ROOT / "bench" / "results").glob("*.json"):
        for target in json.loads(path.read_text(encoding="utf-8"))["targets"]:
            assert f"{target['value']:.4g}" in text, f"run `make performance`: {path.name}"


def test_architecture_has_one_line_for_each_file() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert text == architecture.text(), "run `python tools/architecture.py`"


def test_architecture_names_only_files_that_are_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split(architecture.START)[0]
    names = set(re.findall(r"`([\w/]+\.py)`", text))
    files = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("*/**/*.py")}
    assert len(names) > 25
    assert {n for n in names if not any(f == n or f.endswith(f"/{n}") for f in files)} == set()


def test_every_guarantee_is_held_by_tests_that_are_there() -> None:
    rows = [
        line
        for line in (ROOT / "docs/guarantees.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and not line.startswith("| what holds ")
    ]
    assert len(rows) >= 18
    missing = []
    for row in rows:
        tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert tests, row
        missing += [
            f"{path}::{name}"
            for path, name in tests
            if not (ROOT / path).is_file()
            or f"def {name}(" not in (ROOT / path).read_text(encoding="utf-8")
        ]
    assert missing == []


def test_experiments_are_recommended_as_they_leave_the_workspace_alone() -> None:
    summary = (ROOT / "src/headstart/reports/summary.py").read_text(encoding="utf-8")
    commands = re.findall(r"^\$ (dvc exp .*)", DOCS, re.MULTILINE)
    commands += re.findall(r'"(dvc exp run .*)"', summary)
    assert len(commands) >= 5
    for command in commands:
        assert re.search(r"--temp|--queue|exp show -A|exp apply|exp run --run-all", command), (
            command
        )
    assert "leaves its value in params.yaml" in README
    assert "without `-A`" in README
    assert "dvc exp show -A" in summary
    assert "dvc queue logs" in (ROOT / "docs/data.md").read_text(encoding="utf-8")


def test_what_is_said_of_crops_is_measured() -> None:
    results = json.loads((ROOT / "bench/results/near_duplicates.json").read_text(encoding="utf-8"))
    found = {(change, way): value for change, way, value in results["rows"]}
    text = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    for percent, start in ((1, "| cropped by 1 %"), (2, "| by 2 %"), (3, "| by 3 %")):
        line = next(one for one in text.splitlines() if one.startswith(start))
        said = float(line.split("|")[3].strip().rstrip(" %"))
        assert said == round(found[f"cropped by {percent}% on every side", "as it is"])
    assert "**Not found** are crops of 2 % or more" in text


def test_the_notebook_has_no_outputs() -> None:
    notebook = json.loads((ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(code) >= 5
    assert [cell for cell in code if cell["outputs"] or cell["execution_count"]] == []


def test_pictures_of_the_tutorial_are_small() -> None:
    pictures = list((ROOT / "docs" / "images").glob("tutorial-*"))
    assert 1 <= len(pictures) <= 5
    assert all(path.stat().st_size < 150_000 for path in pictures)
