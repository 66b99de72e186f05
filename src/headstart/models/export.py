"""models/model.h5 in other runtimes' formats, kept only if they give the same answers.

ONNX is written layer by layer, the others by Keras's own `model.export`. What a file says is
checked against the `.h5` on real images before it takes its place; class names and lineage go into
the file's own metadata.
"""

import contextlib
import importlib.util
import io
import json
import statistics
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.common import files
from headstart.common.errors import DataError, TrainingError
from headstart.common.quiet import quiet_keras
from headstart.encoders.onnx_graph import write_onnx
from headstart.images.decode import decode_input
from headstart.models.inference import PROBABILITIES
from headstart.models.model_file import LoadedModel
from headstart.models.pixels import BATCH_SIZE, predict_batch

TOLERANCE = 1e-4
N_CHECKED = 100
_TIMED_RUNS = 20

# uint8 (n, size, size, 3) to probabilities float32 (n, n_classes)
Runner = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True)
class Format:
    """A runtime's format.

    Attributes:
        suffixes: of the files that make it up; the first is the one that is opened.
        needs: a package, and the extra that installs it.
        convert: writes the model and its metadata to a file, and opens that as a function.
    """

    suffixes: tuple[str, ...]
    needs: tuple[str, str]
    convert: Callable[[LoadedModel, Path], Runner]


@dataclass(frozen=True)
class Export:
    """One row of the table: a model file in some format.

    Attributes:
        latency_ms: median time of one image alone on this machine.
        largest_difference: of a probability from the `.h5`'s, over `n_checked` images.
    """

    format: str
    path: Path
    size_bytes: int
    latency_ms: float
    largest_difference: float
    n_checked: int


def export_model(
    loaded: LoadedModel, name: str, target: Path, images: Sequence[Path]
) -> list[Export]:
    """Export to `target`, and return the rows of a table: the `.h5` itself, then the export.

    Args:
        name: a key of `FORMATS`.
        target: the file to write; gets the format's suffix.
        images: real images to check on; `N_CHECKED` of them, evenly spread, are used. Files that
            do not decode are left out, as ingest leaves them out.

    Raises:
        TrainingError: an unknown format, a missing package, no images, or other answers than the
            `.h5`'s; then nothing is written.
    """
    if name not in FORMATS:
        raise TrainingError(f"format must be one of {', '.join(FORMATS)}, but got {name}")
    chosen = FORMATS[name]
    package, extra = chosen.needs
    if importlib.util.find_spec(package) is None:
        raise TrainingError(
            f"exporting to {name} needs {package}, but it is not installed: "
            f"pip install 'headstart[{extra}]'"
        )
    if not images:
        raise TrainingError("an export is checked on real images, but got none: name some")
    rows = np.unique(np.linspace(0, len(images) - 1, min(len(images), N_CHECKED)).astype(int))
    decoded = []
    for row in rows:
        with contextlib.suppress(DataError, OSError):
            decoded.append(decode_input(images[row].read_bytes(), loaded.image))
    if not decoded:
        raise TrainingError(
            f"an export is checked on real images, but none of {len(rows)} files could be decoded, "
            f"among them {images[0]}: name others"
        )
    pixels = np.stack(decoded)
    if loaded.in_onnx and name != "onnx":
        raise TrainingError(
            f"a model is exported to {name} by Keras, but the encoder of {loaded.path} is ONNX: "
            "export it with --format onnx"
        )

    def reference(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        if loaded.in_onnx:
            return np.stack([loaded.inference.outputs(one)[1] for one in batch])
        return predict_batch(loaded.model, batch)

    expected = reference(pixels)
    target = target.with_suffix(chosen.suffixes[0])
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as folder:
        made = Path(folder) / target.name
        # Converters report on standard output and warn of their own internals.
        with (
            warnings.catch_warnings(action="ignore"),
            contextlib.redirect_stdout(io.StringIO()),
            quiet_keras(),
        ):
            runner = chosen.convert(loaded, made)
        starts = range(0, len(pixels), BATCH_SIZE)
        found = np.concatenate([runner(pixels[start : start + BATCH_SIZE]) for start in starts])
        difference = float(np.abs(found - expected).max())
        if difference > TOLERANCE:
            raise TrainingError(
                f"an export must give the .h5's probabilities to {TOLERANCE:g}, but {name} differs "
                f"by {difference:.2g} on {len(pixels)} images: nothing was written"
            )
        latency = _latency_ms(runner, pixels[0])
        for suffix in reversed(chosen.suffixes):
            made.with_suffix(suffix).replace(target.with_suffix(suffix))
    size = sum(target.with_suffix(suffix).stat().st_size for suffix in chosen.suffixes)
    keras_latency = _latency_ms(reference, pixels[0])
    return [
        Export("h5", loaded.path, loaded.path.stat().st_size, keras_latency, 0.0, len(pixels)),
        Export(name, target, size, latency, difference, len(pixels)),
    ]


def _convert_to_onnx(loaded: LoadedModel, path: Path) -> Runner:
    import onnxruntime

    outputs = {PROBABILITIES: PROBABILITIES}
    write_onnx(loaded.path, path, outputs=outputs, metadata=_texts(loaded.metadata))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda pixels: np.asarray(session.run(None, {given.name: pixels})[0])


def _convert_to_openvino(loaded: LoadedModel, path: Path) -> Runner:
    import openvino

    raw = path.with_name(f"raw-{path.name}")
    loaded.model.export(str(raw), format="openvino", verbose=False)
    made = openvino.Core().read_model(raw)
    made.outputs[0].get_tensor().set_names({"probabilities"})
    for name, text in _texts(loaded.metadata).items():
        made.set_rt_info(text, ["headstart", name])
    openvino.save_model(made, path, compress_to_fp16=False)
    # Without the hint, OpenVINO computes in bfloat16 on processors that have it.
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", options)
    return lambda pixels: np.array(compiled([pixels])[0], np.float32)


def _convert_to_litert(loaded: LoadedModel, path: Path) -> Runner:
    loaded.model.export(str(path), format="litert", verbose=False)
    # A zip archive at the end is where this format keeps labels.
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in _texts(loaded.metadata).items():
            archive.writestr(zipfile.ZipInfo(f"{name}.json"), text)
        labels = "\n".join(loaded.classes)
        archive.writestr(zipfile.ZipInfo("labels.txt"), labels)
    path.write_bytes(path.read_bytes() + buffer.getvalue())
    # The interpreter of its own package where that is installed, else TensorFlow's.
    if importlib.util.find_spec("ai_edge_litert") is not None:
        from ai_edge_litert.interpreter import Interpreter
    else:
        import tensorflow as tf

        Interpreter = tf.lite.Interpreter  # noqa: N806 (it cannot be imported: TensorFlow loads it late)
    run = Interpreter(str(path)).get_signature_runner()
    (given,) = run.get_input_details()
    return lambda pixels: np.array(next(iter(run(**{given: pixels}).values())), np.float32)


def _texts(metadata: dict[str, Any]) -> dict[str, str]:
    """What goes into a file's own metadata, as JSON."""
    return {
        "classes": json.dumps(metadata["classes"], ensure_ascii=False),
        "metadata": files.canonical_json(metadata),
    }


FORMATS: dict[str, Format] = {
    "onnx": Format((".onnx",), ("onnxruntime", "cpu"), _convert_to_onnx),
    "openvino": Format((".xml", ".bin"), ("openvino", "openvino"), _convert_to_openvino),
    "litert": Format((".tflite",), ("tensorflow", "cpu"), _convert_to_litert),
}


def _latency_ms(runner: Runner, picture: NDArray[np.uint8]) -> float:
    one = picture[None]
    seconds = []
    for _ in range(_TIMED_RUNS + 3):
        started = time.perf_counter()
        runner(one)
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds[3:])
