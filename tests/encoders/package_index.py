"""Tests that fetch weights from the package index are skipped where none answers."""

import subprocess
import sys
import tempfile

import pytest


def needs_package_index() -> None:
    """Skip the test unless pip can download a small package."""
    with tempfile.TemporaryDirectory() as folder:
        reachable = subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, "idna"],
            check=False,
            capture_output=True,
        )
    if reachable.returncode:
        pytest.skip("no package index can be reached")
