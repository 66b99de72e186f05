"""Silencing the start-up logs of libraries, before they are imported."""

import os


def quiet_libraries() -> None:
    """Set what the libraries read when they are imported; the user's own settings stand."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
