"""Pixels through a whole model in Keras, where it is trained and exported."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headstart.common.errors import TrainingError
from headstart.common.float32 import exact_float32
from headstart.models.inference import FEATURES, PROBABILITIES, Inference

if TYPE_CHECKING:
    import keras

# Images that are read together.
BATCH_SIZE = 8
# Of a probability, and of a feature in proportion to the largest, between Keras and ONNX Runtime.
_TOLERANCE = 1e-4
_N_CHECKED = 4


def predict_batch(model: "keras.Model", pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return what `model` gives for images, float32, shape (n, …): each by its own forward pass.

    So a row does not depend on what shares its batch, on any processor. A constant batch size is
    not enough: without AVX-512, kernels differ by the place of a row in the batch too.
    """
    with exact_float32():
        rows = [model.predict_on_batch(pixels[i : i + 1]) for i in range(len(pixels))]
    return np.concatenate(rows).astype(np.float32, copy=False)


def hold_to_keras(inference: Inference, model: "keras.Model") -> None:
    """Hold what a model file answers to the same model in Keras, on noise.

    Raises:
        TrainingError: features or probabilities differ.
    """
    import keras

    shape = (_N_CHECKED, *inference.input_shape)
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    found = [np.stack(values) for values in zip(*map(inference.outputs, noise), strict=True)]
    both = keras.Model(model.input, [model.get_layer(FEATURES).output, model.output])
    # Of an encoder in ONNX, Keras has the head alone.
    given = noise if len(model.input_shape) == 4 else found[0]
    with exact_float32():
        expected = [np.asarray(values) for values in both(given)]
    for name, wanted, served in zip((FEATURES, PROBABILITIES), expected, found, strict=True):
        difference = float(np.abs(served - wanted).max())
        # Probabilities are at most 1.
        if difference > _TOLERANCE * max(1.0, float(np.abs(wanted).max())):
            raise TrainingError(
                f"model.h5 in Keras and as it is served must agree to {_TOLERANCE:g}, but their "
                f"{name} differ by {difference:.2g}: report it with the encoder's name"
            )
