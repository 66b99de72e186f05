"""Grad-CAM: which parts of an image speak for a class.

Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", ICCV 2017. Knows an assembled model and pixels.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headstart.common.errors import TrainingError
from headstart.heads.backend import Tensors, gradients
from headstart.models.assemble import FEATURES, logits_of
from headstart.models.pixels import predict_batch

if TYPE_CHECKING:
    import keras

_STRENGTH = 0.65


class GradCam:
    """Heat maps of an assembled model.

    Raises:
        TrainingError: the features are not pooled from a map (height, width, channels).
    """

    def __init__(self, model: "keras.Model") -> None:
        import keras

        maps = model.get_layer(FEATURES).input
        if len(maps.shape) != 4:
            raise TrainingError(
                "Grad-CAM needs features that are pooled from a map of the image, but "
                f"extract.layer gives vectors of shape {tuple(maps.shape[1:])}: choose a "
                "convolutional layer"
            )
        self._to_maps = keras.Model(model.input, maps, name="to_maps")
        self._to_logits = keras.Model(maps, logits_of(model), name="maps_to_logits")

    def heat(self, pixels: NDArray[np.uint8], class_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Heat for one class of each image: float32, shape (n, size, size), from 0 to 1.

        Args:
            pixels: uint8, shape (n, size, size, 3).
            class_ids: shape (n,); the class that each map explains.
        """
        size = pixels.shape[1]
        maps = predict_batch(self._to_maps, pixels)
        slopes = self._slopes(maps, class_ids)
        weights = slopes.mean(axis=(1, 2), keepdims=True)
        coarse = np.maximum((weights * maps).sum(axis=-1), 0)
        coarse /= np.maximum(coarse.max(axis=(1, 2), keepdims=True), 1e-12)
        return np.stack([_enlarged(one, size) for one in coarse])

    def _slopes(
        self, maps: NDArray[np.float32], class_ids: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Gradient of each image's logit for its class by its map, shaped as `maps`."""
        from keras import ops

        chosen = np.eye(self._to_logits.output.shape[-1], dtype=np.float32)[class_ids]

        def logit(tensors: Tensors) -> Any:
            return ops.sum(self._to_logits(tensors["maps"]) * chosen)

        found = gradients(logit, {"maps": ops.convert_to_tensor(maps)})
        return np.asarray(ops.convert_to_numpy(found["maps"]))


def overlay(pixels: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """An image, shape (height, width, 3), greyed, with its heat, shape (height, width), upon it."""
    import matplotlib

    grey = pixels.astype(np.float32).mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    colour = matplotlib.colormaps["inferno"](heat)[..., :3].astype(np.float32) * 255
    strength = _STRENGTH * heat[..., None]
    return np.asarray((1 - strength) * grey + strength * colour).round().astype(np.uint8)


def _enlarged(coarse: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    picture = Image.fromarray(coarse.astype(np.float32))
    large = picture.resize((size, size), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(large, np.float32), 0, 1)
