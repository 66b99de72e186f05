"""Thousands of damaged files: each is accepted or rejected with a reason, quickly and in little."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("count", "seed"), [(400, 0), pytest.param(5000, 1, marks=pytest.mark.slow)]
)
def test_mutated_files_neither_crash_nor_hang_nor_swell(
    repository: Path, count: int, seed: int
) -> None:
    command = [sys.executable, "-m", "tests.images.fuzz", str(count), str(seed)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert sum(report["outcomes"].values()) == count
    assert report["outcomes"]["accepted"] > count / 20
    assert report["outcomes"]["damaged"] > count / 20
    assert report["slowest_s"] < 5
    assert report["peak_mb"] < 500
