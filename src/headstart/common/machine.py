"""The machine that this process runs on: cores, processor, memory, libraries."""

import contextlib
import importlib.metadata
import os
import platform
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def processor_name() -> str:
    """Return the processor's model, as it calls itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def has_gpu() -> bool:
    """Return whether there is the driver of an NVIDIA GPU."""
    return Path("/proc/driver/nvidia/version").exists()


def library_version(name: str) -> str | None:
    """Return the installed version of a distribution; None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def available_memory() -> float:
    """Return how many bytes of memory may still be used, by the system or the container."""
    # Only long stages ask; it is not imported where a name or a version is wanted.
    import psutil

    available = float(psutil.virtual_memory().available)
    for path in (_CGROUP / "memory.max", _CGROUP / "memory" / "memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            available = min(available, float(path.read_text(encoding="ascii")))
    return available
