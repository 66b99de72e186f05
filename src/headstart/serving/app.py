"""MLflow's own scoring app behind the limits of `limits.py`, on this machine's loopback."""

from pathlib import Path

import mlflow
import uvicorn
from mlflow.pyfunc import load_model, scoring_server

from headstart.errors import ServingError
from headstart.serving.limits import Limits


def serve(model: str, host: str, port: int, tracking_uri: str) -> None:
    """Serve a pyfunc model (a folder, or an MLflow model URI) until interrupted.

    Raises:
        ServingError: there is no such model folder.
    """
    if ":" not in model and not (Path(model) / "MLmodel").is_file():
        raise ServingError(
            f"a pyfunc model folder must hold an MLmodel file, but {model} does not: run "
            "`dvc repro train` or `dvc pull models/serving`"
        )
    mlflow.set_tracking_uri(tracking_uri)
    app = scoring_server.init(load_model(model))
    uvicorn.run(Limits(app), host=host, port=port, log_level="warning", timeout_keep_alive=10)
