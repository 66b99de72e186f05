"""The model as `mlflow models serve` starts it (MLflow's "models from code": this file is it).

Base64 or bytes of image files in, one row of probabilities each out. Errors name the row or the
rule, and never repeat what was sent.
"""

import base64
import binascii
import os
from collections.abc import Mapping, Sequence
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from numpy.typing import NDArray

from headstart.common.errors import ServingError
from headstart.common.quiet import quiet_libraries
from headstart.images.decode import decode_input
from headstart.models.answers import answers_table
from headstart.models.inference import Answer
from headstart.models.model_file import LoadedModel, load_model
from headstart.params.image import ImageParams
from headstart.serving.package import DEFAULTS, IMAGE_COLUMN, MAX_IMAGES

MAX_IMAGE_BYTES = 32 * 2**20
_MAX_PIXELS = 100_000_000
_URL_SAFE = str.maketrans("-_", "+/")


class ImageClassifier(PythonModel):
    """Image files' bytes, or base64 of them, in; the predicted class and all probabilities out."""

    def __init__(self) -> None:
        self.loaded: LoadedModel | None = None

    def load_context(self, context: PythonModelContext) -> None:
        """Open the `.h5` once, when the server starts."""
        from pathlib import Path

        quiet_libraries()
        # MLflow's errors would repeat what was sent: images, of whomever.
        os.environ.setdefault("MLFLOW_DISABLE_SCHEMA_DETAILS", "true")
        self.loaded = load_model(Path(context.artifacts["model"]))

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002 (MLflow's signature)
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Answer one request; what is wrong with it becomes a 400 that says which row and why.

        Args:
            params: `top_k`: answer with so many of the best classes, in place of a column for each;
                0: all. `threshold`: an image whose best probability is below it has no label.
                `max_novelty`: one whose novelty is above it has none either: none of these classes.
                `on_error`: `refuse` a request with a bad image, or answer its `row` with a reason.
        """
        loaded = self.loaded
        assert loaded is not None, "MLflow calls load_context first"
        options = {**DEFAULTS, **(params or {})}
        try:
            check_options(options)
            if not isinstance(model_input, pd.DataFrame) or IMAGE_COLUMN not in model_input.columns:
                raise ServingError(
                    f"a request must have a column {IMAGE_COLUMN!r}: send "
                    f'{{"dataframe_records": [{{"{IMAGE_COLUMN}": "<base64>"}}]}} or, in Python, '
                    f"pandas.DataFrame({{{IMAGE_COLUMN!r}: [<bytes or base64>]}})"
                )
            values = list(model_input[IMAGE_COLUMN])
            # What MLflow makes of {"image": ["<base64>", "<base64>"]}, where that holds no bytes.
            values = values[0] if len(values) == 1 and isinstance(values[0], list) else values
            answers = answer_request(loaded, values, refuse=options["on_error"] == "refuse")
        except ServingError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from None
        return answers_table(
            answers,
            loaded.classes,
            has_novelty=loaded.novelty is not None,
            top_k=options["top_k"],
            threshold=options["threshold"],
            max_novelty=options["max_novelty"],
            with_reasons=options["on_error"] == "row",
        )


def answer_request(loaded: LoadedModel, values: Sequence[object], *, refuse: bool) -> list[Answer]:
    """Return the answer for each image of a request.

    Raises:
        ServingError: too many images or none, or one that is none while `refuse`: it names the row
            and why, and never repeats what was sent.
    """
    if not 1 <= len(values) <= MAX_IMAGES:
        raise ServingError(
            f"a request must hold 1 to {MAX_IMAGES} images, but got {len(values)}: split it"
        )

    answers = []
    found = loaded.inference.answers(values, lambda value: read_image(value, loaded.image))
    for row, answer in enumerate(found):
        if refuse and answer.reason:
            raise ServingError(f"row {row}: {answer.reason}")
        answers.append(answer)
    return answers


def check_options(options: Mapping[str, Any]) -> None:
    """Check a request's parameters.

    Raises:
        ServingError: one has a value that is not allowed; it is not repeated.
    """
    top_k, on_error = options["top_k"], options["on_error"]
    if not isinstance(top_k, int | np.integer) or isinstance(top_k, bool) or not 0 <= top_k < 2**31:
        raise ServingError("top_k must be a whole number from 0, where 0 answers with every class")
    for name in ("threshold", "max_novelty"):
        value = options[name]
        if not isinstance(value, int | float | np.number) or not 0 <= value <= 1:
            raise ServingError(f"{name} must be a number from 0 to 1")
    if on_error not in ("refuse", "row"):
        raise ServingError("on_error must be `refuse` or `row`")


def read_image(value: object, image: ImageParams) -> NDArray[np.uint8]:
    """Return an image of a request as pixels, uint8 (size, size, 3).

    Raises:
        ServingError, DataError: it is no image, and why; never repeating what was sent.
    """
    return decode_input(_image_bytes(value), image, max_pixels=_MAX_PIXELS)


def _image_bytes(value: object) -> bytes:
    """Return the bytes of an image file, given as they are (in Python) or as base64."""
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
    # Base64 for URLs has other letters for two, and padding is often left out.
    text = "".join(text.split()).translate(_URL_SAFE).rstrip("=")
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
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


mlflow.models.set_model(ImageClassifier())
