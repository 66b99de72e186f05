"""One forward pass in Keras, ONNX Runtime or OpenVINO: uint8 pixels in, float32 features out.

On a CPU, several threads that each decode and compute small batches on a core of their own beat
one pass spread over all cores: nobody waits for the slowest part of a layer, and the activations
stay in the core's cache. Knows nothing of images, files or the cache. A row does not depend on
what shares its batch.
"""

import importlib.util
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.common.errors import ParamsError
from headstart.common.float32 import exact_float32
from headstart.common.machine import has_gpu
from headstart.encoders.frozen import FrozenModel
from headstart.encoders.onnx_session import MOST_WORKERS, on_gpu, onnx_workers, open_onnx
from headstart.params.extract import ExtractParams

# uint8 (n, size, size, 3) → float32 (n, feature_dim)
Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

_EXTRAS = {"onnxruntime": "cpu", "openvino": "openvino", "keras": "cpu"}
_OF_A_WORKER, _ON_CPU, _ON_GPU = 4, 32, 128
_BF16_FLAGS = ("avx512_bf16", "amx_bf16")
_OUT_OF_MEMORY = ("out of memory", "resource_exhausted", "failed to allocate", "bad_alloc")


def resolve(extract: ExtractParams) -> ExtractParams:
    """Return the same parameters with runtime and precision chosen where they are `auto`.

    By rule, not by measurement, so that a machine always chooses the same: Keras where there is an
    NVIDIA GPU, else bfloat16 in OpenVINO where the processor computes in it and OpenVINO is
    installed, else float32 in ONNX Runtime.

    Raises:
        ParamsError: the runtime is not installed, or cannot compute at that precision.
    """
    runtime, precision = extract.runtime, extract.precision
    in_onnx = [one.encoder for one in extract.each() if one.in_onnx]
    if precision == "auto":
        can = runtime in ("keras", "openvino") or (runtime == "auto" and _installed("openvino"))
        precision = "bfloat16" if can and (has_bf16() or has_gpu()) else "float32"
    if runtime == "auto" and has_gpu() and not in_onnx:
        runtime = "keras"
    elif runtime == "auto" and precision == "bfloat16":
        runtime = "openvino" if _installed("openvino") else "keras"
    elif runtime == "auto":
        runtime = "onnxruntime"
    if runtime == "keras" and in_onnx:
        raise ParamsError(
            "extract.runtime must be onnxruntime or openvino for an encoder in an .onnx file, but "
            f"is keras for {', '.join(in_onnx)}: set extract.runtime, and extract.precision to "
            "float32 where OpenVINO is not installed"
        )
    if runtime == "onnxruntime" and precision != "float32":
        raise ParamsError(
            "extract.precision must be float32 where extract.runtime is onnxruntime, but got "
            f"{precision}: set extract.runtime to openvino or keras"
        )
    if not _installed(runtime):
        raise ParamsError(
            f"extract.runtime must be installed, but {runtime} is not: install the extra "
            f"{_EXTRAS[runtime]}, as in pip install 'headstart[{_EXTRAS[runtime]}]'"
        )
    return extract.model_copy(update={"runtime": runtime, "precision": precision})


@dataclass(frozen=True)
class Session:
    """A forward pass that is ready, and what it runs on, as the runtime names it."""

    run: Run
    devices: tuple[str, ...]


@dataclass(frozen=True)
class Forward:
    """A forward pass, and how it is best called.

    Runtimes compile a model for up to half a second, and do so in a thread of their own: images
    can be decoded meanwhile. A call waits for them.

    Attributes:
        workers: threads that may call it at once, each on cores of its own; 1: one at a time.
        batch_size: rows a call that suit it, when the user names none.
    """

    opening: Future[Session]
    workers: int
    batch_size: int

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.opening.result().run(pixels)

    def is_open(self) -> bool:
        return self.opening.done()

    def devices(self) -> tuple[str, ...]:
        return self.opening.result().devices


def open_forward(frozen: FrozenModel, runtime: str, precision: str, cores: int) -> Forward:
    """Return the forward pass of a frozen model in `runtime` at `precision`, for `cores` cores.

    Files of the model that are missing are made before this returns.
    """
    if runtime == "onnxruntime":
        return _onnxruntime(frozen, cores)
    if runtime == "openvino":
        return _openvino(frozen, precision, cores)
    return _keras(frozen, precision)


class HalvingForward:
    """A forward pass whose batches are halved until they fit into memory, and stay so."""

    def __init__(self, forward: Run) -> None:
        self.limit: int | None = None
        self._forward = forward

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        size = min(self.limit or len(pixels), len(pixels))
        try:
            parts = [self._forward(pixels[i : i + size]) for i in range(0, len(pixels), size)]
        except Exception as error:
            # Memory of the device or of the host, in the words of any runtime.
            text = f"{type(error).__name__} {error}".lower()
            is_memory = isinstance(error, MemoryError) or any(s in text for s in _OUT_OF_MEMORY)
            if size == 1 or not is_memory:
                raise
            self.limit = size // 2
            return self(pixels)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _onnxruntime(frozen: FrozenModel, cores: int) -> Forward:
    path = frozen.require_onnx()
    workers = onnx_workers(cores)

    def opened() -> Session:
        session = open_onnx(str(path), cores)

        def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            result: NDArray[np.float32] = session.run(None, {"image": pixels})[0]
            return result

        return Session(run, tuple(session.get_providers()))

    return Forward(_in_background(opened), workers, _ON_GPU if on_gpu() else _OF_A_WORKER)


def _openvino(frozen: FrozenModel, precision: str, cores: int) -> Forward:
    path = frozen.require_onnx()
    workers = min(cores, MOST_WORKERS)

    def opened() -> Session:
        import openvino

        options = {
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
            "INFERENCE_NUM_THREADS": cores,
            "NUM_STREAMS": workers,
        }
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(path), "CPU", options)
        own = threading.local()

        def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            if not hasattr(own, "request"):
                own.request = compiled.create_infer_request()
            # In bfloat16 one image alone is computed by kernels that round otherwise than those of
            # several: of 200, three had other bits.
            rows = np.repeat(pixels, 2, axis=0) if len(pixels) == 1 else pixels
            return np.array(own.request.infer([rows])[0][: len(pixels)], np.float32)

        # Once alone: threads that make the first calls of a process together can wait for each
        # other for ever, one with Python's lock and one with that of a static of the bindings.
        _, *sides = compiled.input(0).partial_shape
        run(np.zeros((1, *(side.get_length() for side in sides)), np.uint8))
        return Session(run, ("CPU",))

    return Forward(_in_background(opened), workers, _OF_A_WORKER)


def _in_background(work: Callable[[], Session]) -> Future[Session]:
    pool = ThreadPoolExecutor(1, thread_name_prefix="open")
    opening = pool.submit(work)
    pool.shutdown(wait=False)
    return opening


def _keras(frozen: FrozenModel, precision: str) -> Forward:
    import keras

    # A pass has always so many images, the last ones repeated where there are less. JAX compiles
    # for a shape, and GPUs choose kernels by it: rows of other batch sizes have other last bits.
    # TensorFlow's kernels for processors without AVX-512 also differ by the place of a row in the
    # batch, so on a CPU each image has a pass of its own.
    if keras.backend.backend() != "jax":
        size = _ON_GPU if keras.distribution.list_devices("gpu") else 1
    else:
        # Batches are split over all of JAX's devices when there are several.
        devices = keras.distribution.list_devices()
        if len(devices) > 1 and keras.distribution.distribution() is None:
            keras.distribution.set_distribution(keras.distribution.DataParallel())
        on_cpu = all(device.startswith("cpu") for device in devices)
        size = (_ON_CPU if on_cpu else _ON_GPU) * len(devices)

    model = frozen.load()
    if precision != "float32":

        def recast(layer: Any) -> Any:
            keep = layer.name.startswith("preprocess_") or layer.name in ("image", "features")
            policy = {} if keep else {"dtype": f"mixed_{precision}"}
            return type(layer).from_config(layer.get_config() | policy)

        clone = keras.models.clone_model(model, clone_function=recast)
        clone.set_weights(model.get_weights())
        model = clone

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        rows = []
        for start in range(0, len(pixels), size):
            part = pixels[start : start + size]
            padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
            with exact_float32():
                rows.append(np.asarray(model.predict_on_batch(padded), np.float32))
        return np.concatenate(rows)[: len(pixels)]

    opening: Future[Session] = Future()
    opening.set_result(Session(run, tuple(keras.distribution.list_devices())))
    return Forward(opening, workers=1, batch_size=max(size, _ON_CPU))


def _installed(runtime: str) -> bool:
    return importlib.util.find_spec(runtime) is not None


def has_bf16() -> bool:
    """Return whether the processor computes in bfloat16 (AVX512-BF16, AMX)."""
    info = Path("/proc/cpuinfo")
    return info.exists() and any(flag in info.read_text("utf-8") for flag in _BF16_FLAGS)
