"""The answers of a model for files and folders that people name."""

import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headstart.common.errors import DataError
from headstart.images.decode import MAX_PIXELS, decode_input
from headstart.models.answers import classify
from headstart.models.model_file import LoadedModel
from headstart.models.pixels import BATCH_SIZE
from headstart.params.image import ImageParams
from headstart.sources.folders import children, files_below


@dataclass(frozen=True)
class Prediction:
    """The answer for one file: probabilities, shape (n_classes,), or why there is none.

    Attributes:
        novelty: None of a model that was made before there was one.
    """

    path: Path
    classes: tuple[str, ...]
    probabilities: NDArray[np.float32] | None
    novelty: float | None = None
    reason: str = ""

    def top(self, k: int) -> list[tuple[str, float]]:
        """Return the k most probable classes with their probabilities, best first."""
        if self.probabilities is None:
            return []
        order = np.argsort(-self.probabilities, kind="stable")[:k]
        return [(self.classes[i], float(self.probabilities[i])) for i in order]


def predict_files(
    loaded: LoadedModel, paths: Iterable[Path], *, max_pixels: int = MAX_PIXELS
) -> Iterator[Prediction]:
    """Predict files in their order; one that is no image gets a reason instead.

    Args:
        max_pixels: of the largest image that is decoded.
    """
    image = ImageParams.model_validate(loaded.metadata["image"])
    waiting = iter(paths)
    while batch := list(islice(waiting, BATCH_SIZE)):
        decoded: list[NDArray[np.uint8]] = []
        reasons: dict[Path, str] = {}
        for path in batch:
            try:
                decoded.append(decode_input(path.read_bytes(), image, max_pixels=max_pixels))
            except (DataError, OSError) as error:
                reasons[path] = str(error)
        empty = np.zeros((0, image.size, image.size, 3), np.uint8)
        probabilities, novelty = classify(loaded, np.stack(decoded) if decoded else empty)
        each = repeat(None) if novelty is None else iter(novelty.tolist())
        answers = ((one, next(each)) for one in probabilities)
        for path in batch:
            if path in reasons:
                yield Prediction(path, loaded.classes, None, reason=reasons[path])
            else:
                yield Prediction(path, loaded.classes, *next(answers))


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
    except OSError as error:
        return error.strerror or str(error)
    except DataError as error:
        return str(error)
    return ""
