"""The list of seeded faults: each has its place in the source, and tests that are there."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from tools.seeded_faults import FAULTS, Fault, mistakes_in_list, seed

from tests.conftest import REPOSITORY


def test_every_fault_has_one_place_and_its_tests() -> None:
    assert mistakes_in_list(REPOSITORY, FAULTS) == []


def test_faults_are_many_and_each_is_one_of_its_own() -> None:
    assert len(FAULTS) >= 20
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert len({(fault.old, fault.new) for fault in FAULTS}) == len(FAULTS)
    assert all(fault.old != fault.new and fault.tests for fault in FAULTS)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A checkout of a package of the same name, with one function and one test."""
    root = tmp_path / "project"
    files = {
        "src/headstart/__init__.py": "",
        "src/headstart/sums.py": "def add(a, b):\n    return a + b\n\n\nUNUSED = 1\n",
        "tests/test_sums.py": "from headstart.sums import add\n\n\n"
        "def test_two_and_two_are_four():\n    assert add(2, 2) == 4\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    return root


WRONG_SUM = Fault("wrong-sum", "", "a + b", "a - b", ("test_two_and_two_are_four",))


def test_a_fault_is_seeded_in_a_copy_alone_and_caught_by_the_test_that_fails(
    project: Path, tmp_path: Path
) -> None:
    caught = seed(project, WRONG_SUM, tmp_path / "scratch")
    assert (caught.status, caught.failed) == (1, WRONG_SUM.tests)
    assert "a + b" in (project / "src/headstart/sums.py").read_text()
    harmless = replace(WRONG_SUM, name="harmless", old="UNUSED = 1", new="UNUSED = 2")
    missed = seed(project, harmless, tmp_path / "scratch")
    assert (missed.status, missed.failed) == (0, ())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"old": "a * b"}, "wrong-sum: the fragment 'a * b' must be in src/headstart exactly once"),
        ({"old": "a"}, "is in src/headstart/sums.py (3 times)"),
        ({"tests": ("test_gone",)}, "the test test_gone must be in tests exactly once"),
    ],
)
def test_what_moved_out_of_sight_is_named(
    project: Path, changes: dict[str, object], said: str
) -> None:
    (mistake,) = mistakes_in_list(project, [replace(WRONG_SUM, **changes)])  # type: ignore[arg-type]
    assert said in mistake
