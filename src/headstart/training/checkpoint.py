"""Fine-tuning between two epochs, on disk: a killed run is resumed, and a finished one is kept.

Lies in the cache, under a key of all that decides the result, so that no run is resumed from
another one's checkpoint. Knows arrays and JSON, not what they mean.
"""

import contextlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.common import files

FORMAT, FORMAT_VERSION = "headstart-checkpoint", 1
_FILE = "last.npz"


@dataclass(frozen=True)
class Checkpoint:
    """The state after an epoch.

    Attributes:
        state: JSON values: epochs done, the curve so far, the best epoch.
        arrays: named groups of arrays: weights, optimizer variables, best weights.
    """

    state: dict[str, Any]
    arrays: dict[str, list[NDArray[Any]]]


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Replace the folder's checkpoint atomically."""
    header = {"format": FORMAT, "format_version": FORMAT_VERSION, "state": checkpoint.state}
    flat: dict[str, Any] = {
        f"{name}.{index}": array
        for name, group in checkpoint.arrays.items()
        for index, array in enumerate(group)
    }
    counts = {name: len(group) for name, group in checkpoint.arrays.items()}
    text = json.dumps({**header, "counts": counts})
    with files.replacing(folder / _FILE) as temporary:
        np.savez(temporary, header=np.array(text), **flat)


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the folder's checkpoint; None where there is none, or a damaged one.

    Each array has a checksum (CRC-32), as ZIP files have.
    """
    path = folder / _FILE
    try:
        with path.open("rb") as stream, np.load(stream) as file:
            header = json.loads(str(file["header"]))
            if (header["format"], header["format_version"]) != (FORMAT, FORMAT_VERSION):
                return None
            arrays = {
                name: [file[f"{name}.{index}"] for index in range(count)]
                for name, count in header["counts"].items()
            }
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    with contextlib.suppress(OSError):
        # When it was last used, for `headstart cache gc`.
        path.touch()
    return Checkpoint(header["state"], arrays)


def as_arrays(variables: Sequence[Any]) -> list[NDArray[Any]]:
    """Values of Keras variables."""
    from keras import ops

    return [np.array(ops.convert_to_numpy(variable)) for variable in variables]


def assign(variables: Sequence[Any], arrays: Sequence[NDArray[Any]]) -> None:
    """Give Keras variables their values."""
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)
