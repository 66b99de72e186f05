"""The frozen model of a recipe on disk: backbone.h5 as Keras saves it, exported to ONNX, its cost.

All are made once and kept in the cache, so that later runs need neither the weights nor
TensorFlow. Each has its sha256 beside it, as `sha256sum --check` reads it, and is checked whenever
it is opened: a changed one is made again. Knows nothing of images.
"""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from headstart.common.cost import Cost
from headstart.common.errors import ParamsError
from headstart.common.files import read_json, replacing, sha256_of_file, write_json, write_text
from headstart.common.quiet import quiet_keras
from headstart.common.terminal import say
from headstart.encoders.costs import block_costs


@dataclass(frozen=True)
class FrozenModel:
    """The files of one frozen encoder, in `folder`; `build` makes it as a Keras model."""

    folder: Path
    build: Callable[[], Any]

    @property
    def h5(self) -> Path:
        return self.folder / "backbone.h5"

    @property
    def costs(self) -> Path:
        return self.folder / "costs.json"

    @property
    def onnx(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def folded_onnx(self) -> Path:
        return self.folder / "folded.onnx"

    def load(self) -> Any:
        """Return the Keras model, built and saved when it is not there yet."""
        import keras

        return keras.models.load_model(self.require_h5(), compile=False)

    def copy_h5(self, path: Path) -> None:
        """Copy backbone.h5 to `path` atomically; it is made when missing."""
        with replacing(path) as temporary:
            shutil.copyfile(self.require_h5(), temporary)

    def require_h5(self) -> Path:
        """Return the path of backbone.h5, made when it is missing or changed."""

        def save() -> None:
            model = self.build()
            with replacing(self.h5) as temporary, quiet_keras():
                model.save(temporary, include_optimizer=False)
            self._require(self.costs, lambda: self._write_costs(model))

        return self._require(self.h5, save)

    def block_costs(self) -> dict[str, Cost]:
        """Return what the encoder costs up to each of its feature blocks; counted once."""
        path = self._require(self.costs, lambda: self._write_costs(self.load()))
        return {name: Cost(**values) for name, values in read_json(path).items()}

    def _write_costs(self, model: Any) -> None:
        write_json(self.costs, {name: asdict(cost) for name, cost in block_costs(model).items()})

    def require_onnx(self) -> Path:
        """Return the path of model.onnx, exported when it is missing or changed."""
        return self._require(self.onnx, lambda: export_onnx(self.load(), self.onnx))

    def require_folded_onnx(self) -> Path:
        """Return the path of folded.onnx: model.onnx with its constants folded; made likewise.

        Its weights were arguments when it was traced, so nothing could be computed from them: batch
        normalisation is not merged into the convolutions, and weights are transposed at every call.
        ONNX Runtime does so whenever it opens a model; OpenVINO does not. The optimisations are
        those that do not depend on the machine.
        """

        def fold() -> None:
            import onnxruntime as ort

            source = str(self.require_onnx())
            with replacing(self.folded_onnx) as temporary:
                options = ort.SessionOptions()
                options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
                options.optimized_model_filepath = str(temporary)
                options.log_severity_level = 3
                ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])

        return self._require(self.folded_onnx, fold)

    def _require(self, path: Path, make: Callable[[], None]) -> Path:
        if is_sound(path):
            return path
        self.folder.mkdir(parents=True, exist_ok=True)
        # One for each file: the making of one requires another.
        with FileLock(path.with_name(f"making-{path.name}.lock"), thread_local=False):
            if not is_sound(path):
                if _sum_of(path).exists() and path.exists():
                    say(
                        f"extract: {path} is not what was written there; it is made again",
                        error=True,
                    )
                # The sum goes first and comes last: a kill in between leaves a file without one.
                _sum_of(path).unlink(missing_ok=True)
                make()
                write_text(_sum_of(path), f"{sha256_of_file(path)}  {path.name}\n")
        return path


def is_sound(path: Path) -> bool:
    """Return whether a file of a frozen model is there and has the sha256 noted beside it."""
    try:
        noted, _, name = _sum_of(path).read_text(encoding="ascii").strip().partition("  ")
        return name == path.name and sha256_of_file(path) == noted
    except (OSError, UnicodeDecodeError):
        return False


def _sum_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def export_onnx(model: Any, path: Path) -> None:
    """Write `model` (a `keras.Model`) as ONNX atomically; its input is named "image".

    Without the gigabytes that Keras's own export takes: it freezes the weights into TensorFlow's
    graph first, and copies that graph dozens of times, 3.6 GB for VGG16's 59 MB. Here the weights
    are arguments of the traced function, so that the graph that is converted holds none, and they
    join the ONNX file as its initializers.

    Raises:
        ParamsError: Keras does not compute in TensorFlow, which the conversion goes through.
    """
    import keras
    import numpy as np
    import onnx

    if keras.backend.backend() != "tensorflow":
        raise ParamsError(
            "an encoder is exported for this extract.runtime through TensorFlow, but KERAS_BACKEND "
            f"is {keras.backend.backend()}: unset it, or set extract.runtime to keras"
        )
    import tensorflow as tf
    import tf2onnx

    variables = [*model.trainable_variables, *model.non_trainable_variables]
    names = [f"weight_{number}" for number in range(len(variables))]
    n_trainable = len(model.trainable_variables)

    def forward(image: Any, *weights: Any) -> Any:
        trainable, frozen = list(weights[:n_trainable]), list(weights[n_trainable:])
        return model.stateless_call(trainable, frozen, image, training=False)[0]

    signature = [tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8, name="image")]
    signature += [
        tf.TensorSpec(variable.shape, variable.dtype, name=name)
        for name, variable in zip(names, variables, strict=True)
    ]
    function = tf.function(forward, input_signature=signature)
    proto, _ = tf2onnx.convert.from_function(function, signature)
    needed = {name for node in proto.graph.node for name in node.input}
    for name, variable in zip(names, variables, strict=True):
        if name in needed:
            values = onnx.numpy_helper.from_array(np.asarray(variable), name)
            proto.graph.initializer.append(values)
    pixels = [value for value in proto.graph.input if value.name == "image"]
    del proto.graph.input[:]
    proto.graph.input.extend(pixels)
    with replacing(path) as temporary:
        onnx.save(proto, temporary)
