"""Mutated and truncated image files: `python -m tests.images.fuzz COUNT SEED` decodes them all.

Runs in a process of its own, so that a crash of a decoder in C is seen, and prints as JSON how
many files were accepted and rejected, the slowest one, and the most memory used.
"""

import json
import os
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from headstart.images.decode import RejectedImage, decode
from tests.images.pictures import encode, picture

FORMATS: list[tuple[str, dict[str, Any]]] = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("PNG", {}),
    ("GIF", {}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "jpeg"}),
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
    ("AVIF", {}),
    ("JPEG2000", {}),
    ("ICO", {}),
    ("PPM", {}),
    ("PCX", {}),
    ("SGI", {}),
]
MODES = ("RGB", "L", "RGBA", "P", "CMYK")


def seeds() -> list[bytes]:
    """Whole files in every format and mode that the format can hold."""
    exif = Image.Exif()
    exif[0x0112] = 6
    found = []
    for kind, options in FORMATS:
        for mode in MODES:
            image = picture(1, (48, 40)).convert(mode)
            try:
                found.append(encode(image, kind, **options))
                found.append(encode(image, kind, exif=exif, **options))
            except (OSError, ValueError, KeyError):
                continue
    return found


def mutants(count: int, seed: int) -> Iterator[bytes]:
    """Files with flipped bytes, changed header fields, cuts, doubled and dropped pieces."""
    rng = np.random.default_rng(seed)
    whole = seeds()
    for i in range(count):
        data = bytearray(whole[i % len(whole)])
        for _ in range(int(rng.integers(1, 4))):
            _mutate(data, rng)
        yield bytes(data)


def _mutate(data: bytearray, rng: np.random.Generator) -> None:
    if not data:
        return
    kind = rng.integers(6)
    start = int(rng.integers(len(data)))
    length = int(rng.integers(1, 64))
    if kind == 0:
        for place in rng.integers(len(data), size=rng.integers(1, 12)):
            data[place] = rng.integers(256)
    elif kind == 1:
        del data[start:]
    elif kind == 2:
        del data[start : start + length]
    elif kind == 3:
        data[start:start] = data[start : start + length]
    elif kind == 4:  # header fields: sizes, counts and offsets
        start = int(rng.integers(min(64, len(data))))
        data[start : start + 4] = rng.choice(
            np.array([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\xff\xff"], "S4")
        ).ljust(4, b"\0")
    else:
        data[start : start + length] = rng.bytes(length)


def main(count: int, seed: int) -> dict[str, Any]:
    outcomes: Counter[str] = Counter()
    slowest_s = 0.0
    for data in mutants(count, seed):
        started = time.perf_counter()
        try:
            decode(data)
            outcomes["accepted"] += 1
        except RejectedImage as error:
            outcomes[error.code] += 1
        slowest_s = max(slowest_s, time.perf_counter() - started)
    return {"outcomes": dict(outcomes), "slowest_s": slowest_s, "peak_mb": peak_mb()}


def peak_mb() -> float:
    """The most memory that this process has had; ru_maxrss counts its parent's, from the fork."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return int(found[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders in C are chatty
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]))))
