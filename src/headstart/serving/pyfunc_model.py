"""The model as `mlflow models serve` starts it (MLflow's "models from code": this file is it)."""

import os
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from headstart.common.errors import ServingError
from headstart.common.quiet import quiet_libraries
from headstart.models.model_file import LoadedModel, load_model
from headstart.models.pixels import predict_batch
from headstart.params.image import ImageParams
from headstart.serving.requests import IMAGE_COLUMN, answer, decode_request


class ImageClassifier(PythonModel):
    """Image files' bytes, or base64 of them, in; the predicted class and all probabilities out."""

    def __init__(self) -> None:
        self._loaded: LoadedModel | None = None

    def load_context(self, context: PythonModelContext) -> None:
        """Load the `.h5` once, when the server starts."""
        from pathlib import Path

        quiet_libraries()
        # MLflow's errors would repeat what was sent: images, of whomever.
        os.environ.setdefault("MLFLOW_DISABLE_SCHEMA_DETAILS", "true")
        self._loaded = load_model(Path(context.artifacts["model"]))

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002 (MLflow's signature)
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> pd.DataFrame:
        """Answer one request; what is wrong with it becomes a 400 that says which row and why."""
        loaded = self._loaded
        assert loaded is not None, "MLflow calls load_context first"
        try:
            image = ImageParams.model_validate(loaded.metadata["image"])
            pixels = decode_request(_column(model_input), image)
        except ServingError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from None
        probabilities = predict_batch(loaded.model, pixels)
        return answer(probabilities, loaded.metadata["classes"])


def _column(model_input: object) -> list[object]:
    if isinstance(model_input, pd.DataFrame) and IMAGE_COLUMN in model_input.columns:
        values = list(model_input[IMAGE_COLUMN])
        # What MLflow makes of {"image": ["<base64>", "<base64>"]}, where that holds no bytes.
        return values[0] if len(values) == 1 and isinstance(values[0], list) else values
    raise ServingError(
        f"a request must have a column {IMAGE_COLUMN!r}: send "
        f'{{"dataframe_records": [{{"{IMAGE_COLUMN}": "<base64>"}}]}} or, in Python, '
        f"pandas.DataFrame({{{IMAGE_COLUMN!r}: [<bytes or base64>]}})"
    )


mlflow.models.set_model(ImageClassifier())
