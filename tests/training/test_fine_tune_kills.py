"""Fine-tuning killed at random moments ends with the weights of an undisturbed run."""

import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import REPOSITORY

_RUN = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import numpy as np
from headstart.training.checkpoint import as_arrays
from tests.training.test_fine_tune import AUGMENTED, _model, _tune
model = _model()
_tune(model, Path(sys.argv[2]), AUGMENTED.model_copy(update={"epochs": 60, "patience": 60}))
np.save(sys.argv[3], np.concatenate([array.ravel() for array in as_arrays(model.weights)]))
"""
_KILLS = 5


def _start(checkpoints: Path, result: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", _RUN, str(REPOSITORY), str(checkpoints), str(result)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _kill_in_training(checkpoints: Path, result: Path, chance: random.Random) -> bool:
    """Kill a run a moment after it wrote a new checkpoint; False if it ended before."""
    file = checkpoints / "last.npz"
    before = file.stat().st_mtime_ns if file.exists() else 0
    process = _start(checkpoints, result)
    while process.poll() is None:
        if file.exists() and file.stat().st_mtime_ns > before:
            time.sleep(chance.uniform(0, 0.3))
            process.kill()
            process.wait()
            return not result.exists()
        time.sleep(0.01)
    return False


@pytest.mark.slow
def test_five_kills_change_nothing(tmp_path: Path) -> None:
    assert _start(tmp_path / "whole", tmp_path / "whole.npy").wait(timeout=250) == 0
    chance = random.Random(0)
    killed = [
        _kill_in_training(tmp_path / "torn", tmp_path / "torn.npy", chance) for _ in range(_KILLS)
    ]
    assert killed == [True] * _KILLS
    assert _start(tmp_path / "torn", tmp_path / "torn.npy").wait(timeout=250) == 0
    assert np.array_equal(np.load(tmp_path / "whole.npy"), np.load(tmp_path / "torn.npy"))
