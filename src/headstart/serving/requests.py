"""The request and answer format of the served model: base64 in, one row of probabilities out.

Knows nothing of MLflow's server; `pyfunc_model.py` is what the server calls. Errors name the row or
the rule, and never repeat what was sent.
"""

import base64
import binascii
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headstart.common.errors import DataError, ServingError
from headstart.images.decode import decode_input
from headstart.params.image import ImageParams

IMAGE_COLUMN = "image"
MAX_IMAGE_BYTES = 32 * 2**20
MAX_IMAGES = 256
_MAX_PIXELS = 100_000_000
# Commas and opening brackets of a body: it can hold no more values and columns than these. Base64
# has neither, so this is room for 256 rows of a dozen fields.
_MAX_SEPARATORS = 4096
_FORMS = {"dataframe_records", "dataframe_split", "inputs", "instances"}


def read_json(body: bytes | bytearray) -> list[object]:
    """Return the column `image` of a body in any of MLflow's JSON forms, in linear time.

    MLflow's own reader is not used: it pads the strings of `inputs` to the longest one, so that one
    image of 32 MiB beside 200 small ones takes 30 GB.

    Raises:
        ServingError: it is no such body.
    """
    _check_size(body)
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        request = None
    if isinstance(request, dict) and len(_FORMS & request.keys()) == 1:
        values = _image_column(request)
        if values is not None:
            return values
    raise ServingError(
        f'the body must be JSON like {{"dataframe_records": [{{"{IMAGE_COLUMN}": "<base64>"}}]}}, '
        "but it is not: see docs/serving.md for the other forms"
    )


def read_csv(body: bytes | bytearray) -> list[object]:
    """Return the column `image` of a CSV body, in linear time; rows beyond the limit are not read.

    Raises:
        ServingError: it is no CSV with that column.
    """
    _check_size(body)
    try:
        table = pd.read_csv(
            io.BytesIO(body),
            usecols=[IMAGE_COLUMN],
            dtype=str,
            keep_default_na=False,
            nrows=MAX_IMAGES + 1,
        )
        return list(table[IMAGE_COLUMN])
    except ValueError:  # pandas' parser errors and UnicodeDecodeError are such
        pass  # so that what is raised does not hold pandas' error, which holds the body
    raise ServingError(
        f"the body must be CSV with a header and a column {IMAGE_COLUMN!r} of base64, but it "
        "is not: send JSON if in doubt"
    )


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


def _check_size(body: bytes | bytearray) -> None:
    if len(body) - len(body.translate(None, b",[{")) > _MAX_SEPARATORS:
        raise ServingError(
            f"a request may hold {MAX_IMAGES} images and {_MAX_SEPARATORS} commas and opening "
            "brackets, but got more: split it, or leave out columns that are not used"
        )


def _image_column(request: dict[str, Any]) -> list[object] | None:
    """The column `image`; None where the form is not as MLflow documents it."""
    match request:
        case {"dataframe_records": list(rows)} | {"instances": list(rows)}:
            if all(isinstance(row, dict) for row in rows):
                return [row.get(IMAGE_COLUMN) for row in rows]
        case {"dataframe_split": {"columns": list(names), "data": list(rows)}}:
            if IMAGE_COLUMN in names and all(
                isinstance(row, list) and len(row) == len(names) for row in rows
            ):
                return [row[names.index(IMAGE_COLUMN)] for row in rows]
        case {"inputs": {"image": list(values)}}:
            return values
        case {"inputs": {"image": value}}:
            return [value]
    return None


def _decode_row(row: int, value: object, image: ImageParams) -> NDArray[np.uint8]:
    try:
        return decode_input(_image_bytes(value), image, max_pixels=_MAX_PIXELS)
    except (DataError, ServingError) as error:
        raise ServingError(f"row {row}: {error}") from None


def _image_bytes(value: object) -> bytes:
    """The bytes of an image file, from themselves (in Python) or from base64 (over HTTP, too)."""
    if isinstance(value, bytes | bytearray | memoryview):
        _check_image_size(len(value))
        return bytes(value)
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
    _check_image_size(len(text) * 3 // 4)
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ServingError(
            f"`{IMAGE_COLUMN}` must be base64 of an image file's bytes, but it is no valid base64: "
            "encode it with `base64`"
        ) from None
    if not data:
        raise ServingError(f"`{IMAGE_COLUMN}` must not be empty: send an image")
    return data


def _check_image_size(size_bytes: int) -> None:
    if size_bytes > MAX_IMAGE_BYTES:
        raise ServingError(
            f"an image may have {MAX_IMAGE_BYTES // 2**20} MiB, but got about "
            f"{size_bytes // 2**20} MiB: send a smaller one"
        )
