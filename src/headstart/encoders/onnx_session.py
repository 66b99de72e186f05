"""A session of ONNX Runtime, opened for several calls at once."""

from typing import Any

from headstart.common.machine import has_gpu

MOST_WORKERS = 8
_CUDA = "CUDAExecutionProvider"


def open_onnx(model: str | bytes, cores: int) -> Any:
    """Return a session of ONNX Runtime on a file or its bytes, for `onnx_workers` calls at once."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, cores // onnx_workers(cores))
    options.log_severity_level = 3
    # Threads that spin while they wait would take the cores from the decoders.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # In float32, not in TF32, whose products have ten bits.
    providers: list[Any] = [(_CUDA, {"use_tf32": "0"})] if on_gpu() else []
    providers.append("CPUExecutionProvider")
    return onnxruntime.InferenceSession(model, options, providers=providers)


def onnx_workers(cores: int) -> int:
    """Return how many threads may call a session at once, each on cores of its own."""
    return 1 if on_gpu() else min(cores, MOST_WORKERS)


def on_gpu() -> bool:
    """Return whether ONNX Runtime computes on a GPU: it can, and there is a driver."""
    import onnxruntime

    return has_gpu() and _CUDA in onnxruntime.get_available_providers()
