"""Claims: what others work on is left to them, until they end in whatever way."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from headstart.cache.claims import Claims, anybody_claims

MINE, THEIRS = "11" * 32, "22" * 32

CLAIMER = """
import sys, time
from pathlib import Path
from headstart.cache.claims import Claims
with Claims(Path(sys.argv[1])) as claims:
    with claims.taking:
        claims.claim([sys.argv[2]])
    print("claimed", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", CLAIMER, str(tmp_path), THEIRS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "claimed\n"
    return process


def others(folder: Path) -> set[str]:
    with Claims(folder) as claims, claims.taking:
        claims.claim([MINE])
        return claims.others()


def test_a_living_process_keeps_its_claims(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    assert others(tmp_path) == {THEIRS}
    assert anybody_claims(tmp_path)
    other.communicate()
    assert others(tmp_path) == set()


def test_claims_of_a_killed_process_are_void(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    other.send_signal(signal.SIGKILL)
    other.communicate()
    assert not anybody_claims(tmp_path)
    assert others(tmp_path) == set()
    assert [path.name for path in tmp_path.iterdir()] == ["taking.lock"]


def test_claims_that_are_done_are_dropped(tmp_path: Path) -> None:
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        with first.taking:
            first.claim([MINE, THEIRS])
            first.done([MINE])
            first.claim([])
        with second.taking:
            assert second.others() == {THEIRS}
