"""The request and answer format of the served model: base64 in, one row of probabilities out.

Knows nothing of MLflow's server; `pyfunc_model.py` is what the server calls.
"""

import base64
import binascii
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headstart.errors import DataError, ServingError
from headstart.images.decode import decode_square
from headstart.params import ImageParams

IMAGE_COLUMN = "image"
MAX_IMAGE_BYTES = 32 * 2**20
MAX_IMAGES = 256
_MAX_PIXELS = 100_000_000


def decode_request(values: Sequence[object], image: ImageParams) -> NDArray[np.uint8]:
    """Images of a request as uint8 pixels, shape (n_images, size, size, 3).

    Raises:
        ServingError: naming the row and why; never repeating what was sent.
    """
    if not 1 <= len(values) <= MAX_IMAGES:
        raise ServingError(
            f"a request must hold 1 to {MAX_IMAGES} images, but got {len(values)}: split it"
        )
    return np.stack([_decode_row(row, value, image) for row, value in enumerate(values)])


def answer(probabilities: NDArray[np.float32], classes: Sequence[str]) -> pd.DataFrame:
    """Probabilities, shape (n_images, n_classes), as the columns that are served."""
    label_ids = probabilities.argmax(axis=1)
    columns: dict[str, object] = {
        "predicted_label": [classes[i] for i in label_ids],
        "predicted_label_id": label_ids.astype(np.int64),
    }
    for index, name in enumerate(classes):
        columns[f"p({name})"] = probabilities[:, index].astype(np.float64)
    return pd.DataFrame(columns)


def _decode_row(row: int, value: object, image: ImageParams) -> NDArray[np.uint8]:
    try:
        return decode_square(_image_bytes(value), image, max_pixels=_MAX_PIXELS)
    except (DataError, ServingError) as error:
        raise ServingError(f"row {row}: {error}") from None


def _image_bytes(value: object) -> bytes:
    if not isinstance(value, str):
        raise ServingError(
            f"`{IMAGE_COLUMN}` must be a string of base64, but got a {type(value).__name__}: "
            "encode the image file's bytes as base64"
        )
    text = value.strip()
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise ServingError(
                "a data: URI must be of the form data:<type>;base64,<data>: send it so, or the "
                "base64 text alone"
            )
    if len(text) > MAX_IMAGE_BYTES * 4 // 3 + 4:
        raise ServingError(
            f"an image may have {MAX_IMAGE_BYTES // 2**20} MiB, but got about "
            f"{len(text) * 3 // 4 // 2**20} MiB: send a smaller one"
        )
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ServingError(
            f"`{IMAGE_COLUMN}` must be base64 of an image file's bytes, but it is no valid base64: "
            "encode with `base64 -w0 FILE`"
        ) from None
    if not data:
        raise ServingError(f"`{IMAGE_COLUMN}` must not be empty: send an image")
    return data
