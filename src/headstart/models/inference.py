"""What a model says of images, by ONNX Runtime: neither Keras nor TensorFlow is imported.

Each image is decoded and computed by itself, as many at once as there are cores, so an answer does
not depend on what else was asked. train holds these answers to those of Keras.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from headstart.common.errors import DataError, ServingError
from headstart.common.machine import usable_cores
from headstart.common.prefetch import prefetched
from headstart.encoders.onnx_graph import onnx_model
from headstart.encoders.onnx_session import MOST_WORKERS, open_onnx
from headstart.models.novelty import NoveltyReference

A = TypeVar("A")
B = TypeVar("B")

# Of an assembled model's layers: what its head takes, and what leaves it.
FEATURES = "features"
LOGITS = "logits"
PROBABILITIES = "probabilities"


@dataclass(frozen=True)
class Answer:
    """What a model says of one image, or why it says nothing.

    Attributes:
        probabilities: float32 (n_classes,).
        novelty: None of a model that was made before there was one.
        reason: empty where there are probabilities.
    """

    probabilities: NDArray[np.float32] | None
    novelty: float | None = None
    reason: str = ""


class Inference:
    """A model file, opened for answers."""

    def __init__(self, h5: Path, novelty: NoveltyReference | None) -> None:
        made = onnx_model(h5, outputs={name: name for name in (FEATURES, PROBABILITIES)})
        self._session = open_onnx(made, usable_cores())
        self.workers = min(usable_cores(), MOST_WORKERS)
        self._novelty = novelty
        self._h5 = h5
        (given,) = self._session.get_inputs()
        self.input_shape = tuple(given.shape[1:])
        self.n_classes = self._session.get_outputs()[1].shape[1]

    def outputs(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return features (n_features,) and probabilities (n_classes,) of one image's pixels."""
        features, probabilities = self._session.run(
            [FEATURES, PROBABILITIES], {"image": pixels[None]}
        )
        return features[0], probabilities[0]

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what the head gives for rows of features, before the temperature.

        Float32 (n, n_features) to float32 (n, n_classes).
        """
        (found,) = self._head.run([LOGITS], {FEATURES: features})
        return np.asarray(found)

    @cached_property
    def _head(self) -> Any:
        # Who asks for answers alone does not need it.
        made = onnx_model(self._h5, start=FEATURES, outputs={LOGITS: LOGITS})
        return open_onnx(made, usable_cores())

    def answer(self, pixels: NDArray[np.uint8]) -> Answer:
        """Return the answer for pixels, uint8 (size, size, 3), decoded to the model's input."""
        features, probabilities = self.outputs(pixels)
        if self._novelty is None:
            return Answer(probabilities)
        return Answer(probabilities, float(self._novelty.novelty(features[None])[0]))

    def answers(
        self, images: Iterable[A], read: Callable[[A], NDArray[np.uint8]]
    ) -> Iterator[Answer]:
        """Yield an answer for each image, in order and in bounded memory.

        Args:
            read: decodes one to the model's input; called in several threads. What a DataError,
                ServingError or OSError of it says is the reason why there is no answer.
        """

        def one(image: A) -> Answer:
            try:
                pixels = read(image)
            except (DataError, ServingError, OSError) as error:
                return Answer(None, reason=str(error))
            return self.answer(pixels)

        return self.in_threads(one, images)

    def in_threads(self, work: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
        """Yield `work(item)` in order, by the threads that all who ask this model share.

        So no more images are decoded at once than there are threads, however many ask.
        """
        return prefetched(work, items, self._pool, 4 * self.workers)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.workers, thread_name_prefix="answer")
