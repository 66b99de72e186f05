"""The pyfunc model folder that `mlflow models serve` starts anywhere, made of models/model.h5."""

import base64
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

import mlflow
import pandas as pd
import yaml
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

import headstart
from headstart.common.machine import library_version
from headstart.models.model_file import has_novelty

IMAGE_COLUMN = "image"
MAX_IMAGES = 256
# Parameters of a request.
DEFAULTS = MappingProxyType(
    {"top_k": 0, "threshold": 0.0, "max_novelty": 1.0, "on_error": "refuse"}
)
_REQUIREMENTS = ("mlflow", "onnx", "h5py", "numpy", "pandas", "pillow", "pydantic", "pyyaml")


def save_pyfunc(folder: Path, model_h5: Path, classes: Sequence[str], example: bytes) -> None:
    """Write the pyfunc model folder atomically, replacing an older one.

    Args:
        model_h5: the model file that is served.
        classes: class names in the order of the probabilities.
        example: bytes of one image file, the input example.
    """
    # The installed versions: asking MLflow to infer them takes seconds.
    runtime = next(filter(library_version, ("onnxruntime", "onnxruntime-gpu")), None)
    if runtime is None:
        raise ModuleNotFoundError("neither onnxruntime nor onnxruntime-gpu is installed")
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "predicted_label"),
        ColSpec(DataType.long, "predicted_label_id"),
        ColSpec(DataType.double, "probability"),
        *([ColSpec(DataType.double, "novelty")] if has_novelty(model_h5) else []),
        *(ColSpec(DataType.double, f"p({name})") for name in classes),
    ]
    # In MLflow's rules a string column may hold bytes. It is optional so that the model answers a
    # request without it (a plain list, a column of another name) with what to send: MLflow's own
    # refusal repeats the request.
    inputs = Schema([ColSpec(DataType.string, IMAGE_COLUMN, required=False)])
    types = {int: DataType.long, float: DataType.double, str: DataType.string}
    params = ParamSchema(
        [ParamSpec(name, types[type(value)], value) for name, value in DEFAULTS.items()]
    )
    # It says that it validates the input example; a stage prints one line.
    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)
    scratch = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    mlflow.pyfunc.save_model(
        scratch,
        python_model=str(Path(__file__).with_name("pyfunc_model.py")),
        # MLflow reads this as an address, whatever characters the path has.
        artifacts={"model": model_h5.absolute().as_uri()},
        signature=ModelSignature(inputs, Schema(outputs), params),
        input_example=pd.DataFrame({IMAGE_COLUMN: [base64.b64encode(example).decode()]}),
        pip_requirements=[f"{name}=={library_version(name)}" for name in (*_REQUIREMENTS, runtime)],
        code_paths=[str(Path(headstart.__file__).parent)],
    )
    # Paths of this machine that MLflow notes in MLmodel, and does not read, become relative.
    path = scratch / "MLmodel"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    flavor = content["flavors"]["python_function"]
    flavor["model_code_path"] = Path(flavor["model_code_path"]).name
    for artifact in flavor["artifacts"].values():
        artifact["uri"] = artifact["path"]
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
