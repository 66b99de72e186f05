"""A model file named by a path or by an MLflow model URI such as `models:/headstart@champion`.

A module of its own: a path, which is what most name, needs no MLflow, whose import takes a second.
"""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headstart.common.errors import TrackingError, one_line
from headstart.common.secrets import without_secrets

# Where `serving.package` leaves the model file in a pyfunc model's folder.
_IN_PYFUNC = "artifacts/model.h5"


@contextmanager
def model_file(model: str, root: Path) -> Iterator[Path]:
    """Yield the local path of a model file; what a URI names is there until the context ends.

    Args:
        model: a path, or a URI of a pyfunc model of this project.

    Raises:
        TrackingError: a URI that names no model, or a store that does not answer.
    """
    # More than one letter, so that a drive of Windows is no scheme.
    if re.match(r"[a-z][a-z0-9+.-]+:", model) is None:
        yield Path(model)
        return
    import mlflow

    from headstart.tracking.store import global_store, prepare_mlflow, tracking_uri

    prepare_mlflow()
    uri = f"{model.rstrip('/')}/{_IN_PYFUNC}"
    registry = os.environ.get("MLFLOW_REGISTRY_URI")
    with tempfile.TemporaryDirectory(prefix="headstart-model-") as folder:
        try:
            # Aliases are resolved at MLflow's own, process-wide addresses.
            with global_store(tracking_uri(root)):
                found = mlflow.artifacts.download_artifacts(
                    uri, dst_path=folder, registry_uri=registry
                )
        except Exception as error:
            # MLflow's, its database's and its artifact store's; they share no base class.
            raise TrackingError(
                f"a model URI must name a registered model of this project, but "
                f"{without_secrets(model)} gave no {_IN_PYFUNC}: {without_secrets(one_line(error))}"
                ": look at the versions in `mlflow ui`, or name a file such as models/model.h5"
            ) from None
        yield Path(found)
