"""The answers of a model for files and folders that people name."""

import glob
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import tee
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from headstart.common.errors import DataError
from headstart.images.decode import MAX_PIXELS, decode_input
from headstart.models.inference import Answer
from headstart.models.model_file import LoadedModel
from headstart.sources.folders import children, files_below


@dataclass(frozen=True)
class Prediction:
    """The answer for one file."""

    path: Path
    classes: tuple[str, ...]
    answer: Answer

    def top(self, k: int) -> list[tuple[str, float]]:
        """Return the k most probable classes with their probabilities, best first."""
        if self.answer.probabilities is None:
            return []
        order = np.argsort(-self.answer.probabilities, kind="stable")[:k]
        return [(self.classes[i], float(self.answer.probabilities[i])) for i in order]


def predict_files(
    loaded: LoadedModel, paths: Iterable[Path], *, max_pixels: int = MAX_PIXELS
) -> Iterator[Prediction]:
    """Predict files in their order; one that is no image gets a reason instead.

    Args:
        max_pixels: of the largest image that is decoded.
    """

    def read(path: Path) -> NDArray[np.uint8]:
        return decode_input(path.read_bytes(), loaded.image, max_pixels=max_pixels)

    named, ahead = tee(paths)
    for path, answer in zip(named, loaded.inference.answers(ahead, read), strict=True):
        yield Prediction(path, loaded.classes, answer)


def named_paths(given: Iterable[Path], standard_input: IO[bytes]) -> Iterator[Path]:
    """Yield the paths that people name: as they are, by patterns, or as a list where it says `-`.

    A pattern (`photos/**/*.jpg`) is one only where no file has that name; of what matches, folders
    count only where no file does; without a match it is yielded as it is. The list has a path a
    line, or ends them with zero bytes, as `find -print0` does.
    """
    for path in given:
        text = str(path)
        if text == "-":
            listed = standard_input.read()
            end = b"\0" if b"\0" in listed else b"\n"
            lines = (line.strip(b"\r") for line in listed.split(end))
            yield from (Path(os.fsdecode(line)) for line in lines if line)
        elif any(letter in text for letter in "*?[") and not _exists(path):
            # Path.glob takes no pattern of a path from the root.
            found = [Path(one) for one in sorted(glob.glob(text, recursive=True))]  # noqa: PTH207
            yield from [one for one in found if not one.is_dir()] or found or [path]
        else:
            yield path


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # no name of a file
        return False


def find_images(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield files as given, and of folders the files in them that are not ignored.

    Linked folders are followed, each folder once. What is neither file nor folder is yielded as it
    is, and reading it gives the reason: `why_unreadable` tells it beforehand.

    Raises:
        DataError: a folder cannot be listed.
    """
    for path in paths:
        if path.is_dir():
            yield from (path / name for name in files_below(path))
        else:
            yield path


def why_unreadable(path: Path) -> str:
    """Return why a path is neither a file nor a folder to be listed; empty where it is one."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            children(path)
        elif not stat.S_ISREG(mode):
            return "an image must be a file or a folder, but this is a pipe, socket or device"
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    except DataError as error:
        return str(error)
    return ""
