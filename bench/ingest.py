"""How fast images come in: `python -m bench.ingest`; `--quick` is a smoke run without results.

Photographs are made from a fixed seed, about 500 × 375 pixels as JPEG, so that the bench needs no
data. Each ingest runs in a process of its own, and its memory is that of all its processes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from bench.common import Target, print_table, write_results
from headstart.common.machine import usable_cores
from headstart.dataset.duplicates import find_near_duplicates
from headstart.dataset.image_statistics import NO_COLOUR, STATISTICS
from headstart.dataset.pixel_store import ImageStore, write_store
from headstart.images.decode import decode, decode_input
from headstart.params.image import ImageParams

Row = tuple[str, float, str]
REPETITIONS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run that writes no results")
    quick = parser.parse_args().quick
    few, many = (100, 300) if quick else (2_000, 20_000)
    n_hashes = 5_000 if quick else 100_000
    n_stored = 100 if quick else 1_500
    rows: list[Row] = []
    targets: list[Target] = []
    with tempfile.TemporaryDirectory(prefix="headstart-bench-") as name:
        folder = Path(name)
        for found in (
            bench_ingest(folder, few, many),
            bench_store(folder, n_stored),
            bench_duplicates(n_hashes),
        ):
            rows += found[0]
            targets += found[1]
    headers = ["measured", "value", "unit"]
    print_table(headers, rows)
    if quick:
        print("quick: nothing is written")
    else:
        write_results("ingest", targets, headers, rows)


def bench_ingest(folder: Path, few: int, many: int) -> tuple[list[Row], list[Target]]:
    """Throughput against the bound, memory at two sizes, and runs in which little is new."""
    images = folder / "images"
    write_photographs(images, 0, few)
    small = run_ingest(folder, "small", watched=True)
    write_photographs(images, few, many)
    large = run_ingest(folder, "large", watched=True)
    # The machine's own speed changes from minute to minute, so the bound is measured on both sides
    # of each run that is compared with it.
    rates, shares = [decode_rate(images)], []
    for repetition in range(REPETITIONS):
        full = run_ingest(folder, f"full-{repetition}")
        rates.append(decode_rate(images))
        around = usable_cores() * statistics.fmean(rates[-2:])
        shares.append(full["images"] / full["read_s"] / around)
    rate = statistics.median(rates)
    bound = usable_cores() * rate
    last = f"full-{REPETITIONS - 1}"
    unchanged = run_ingest(folder, last)
    write_photographs(images, many, many + many // 100)
    grown = run_ingest(folder, last)
    read_rate = full["images"] / full["read_s"]
    rows: list[Row] = [
        ("single-thread decode rate", rate, "images/s"),
        ("bound: cores × that", bound, "images/s"),
        (f"ingest, {many} images: reading, last run", read_rate, "images/s"),
        ("reading against the bound around it, least", min(shares), "ratio"),
        ("reading against the bound around it, most", max(shares), "ratio"),
        (f"ingest, {many} images: all of it", full["images"] / full["total_s"], "images/s"),
        (f"memory at {few} images", small["peak_mb"], "MB"),
        (f"memory at {many} images", large["peak_mb"], "MB"),
        ("first run", full["total_s"], "s"),
        ("second run, nothing changed", unchanged["total_s"], "s"),
        ("run with 1 % added", grown["total_s"], "s"),
        ("images decoded with 1 % added", grown["n_decoded"], "images"),
    ]
    targets = [
        Target(
            "ingest: reading against the bound around it, median",
            statistics.median(shares),
            "ratio",
            0.85,
            ">=",
        ),
        Target(
            f"ingest: memory at {many} against {few}",
            large["peak_mb"] / small["peak_mb"],
            "ratio",
            1.15,
            "<=",
        ),
        Target(
            "ingest: images decoded again with 1 % added",
            grown["n_decoded"] - many // 100,
            "images",
            0,
            "<=",
        ),
    ]
    return rows, targets


def write_photographs(folder: Path, start: int, stop: int) -> None:
    """Different JPEGs of about 500 × 375 pixels, 30 to 60 kB, in four classes."""
    for i in range(start, stop):
        rng = np.random.default_rng(i)
        coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
        grain = Image.effect_noise((500, 375), 40).filter(ImageFilter.SMOOTH)
        image = Image.blend(image, grain.convert("RGB"), 0.25)
        path = folder / "abcd"[i % 4] / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=88)
        os.utime(path, (1_700_000_000, 1_700_000_000))


def decode_rate(folder: Path, seconds: float = 4.0) -> float:
    """Images that one thread reads and decodes in a second, spread over all that there are."""
    paths = sorted(folder.rglob("*.jpg"))
    step = max(1, len(paths) // 4000)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        decode(paths[count * step % len(paths)].read_bytes())
        count += 1
    return count / (time.perf_counter() - started)


_INGEST = """
import json, sys, time
from pathlib import Path
from headstart.dataset import ingest as module
from headstart.params.ingest import IngestParams
seconds = {}
read = module.read_images
def timed(*args, **options):
    started = time.perf_counter()
    try:
        return read(*args, **options)
    finally:
        seconds["read_s"] = time.perf_counter() - started
module.read_images = timed
if __name__ == "__main__":
    started = time.perf_counter()
    found = module.ingest(
        Path(sys.argv[1]), IngestParams(), seed=0, thresholds={}, cache=Path(sys.argv[2])
    )
    print(json.dumps({
        "total_s": time.perf_counter() - started, "images": len(found.manifest),
        "n_decoded": found.n_decoded, **seconds,
    }))
"""


def run_ingest(folder: Path, cache: str, *, watched: bool = False) -> dict[str, Any]:
    """Ingest the images in a fresh process; its figures.

    A watched run has the peak memory of its processes too. Adding up their pages takes them time,
    so what is timed is not watched.
    """
    script = folder / "run_ingest.py"
    script.write_text(_INGEST, encoding="utf-8")
    command = [
        sys.executable,
        str(script),
        str(folder / "images"),
        str(folder / f"{cache}.sqlite3"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peak = _PeakMemory(process.pid) if watched else None
        output, _ = process.communicate()
        if process.returncode:
            raise SystemExit("the ingest that is measured failed")
    found: dict[str, Any] = json.loads(output)
    return found if peak is None else {**found, "peak_mb": peak.stop()}


class _PeakMemory:
    """Watches the proportional memory of a process and its children."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._peak_mb = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> float:
        self._ended.set()
        self._thread.join()
        return self._peak_mb

    def _watch(self) -> None:
        while not self._ended.wait(0.2):
            self._peak_mb = max(self._peak_mb, self._now_mb())

    def _now_mb(self) -> float:
        total = 0.0
        try:
            family = [self._process, *self._process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return 0.0
        for process in family:
            try:
                memory = process.memory_full_info()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            total += getattr(memory, "pss", memory.rss) / 1e6
        return total


def bench_store(folder: Path, n: int) -> tuple[list[Row], list[Target]]:
    """Reading images.h5 in batches, against decoding the files and against a bare array."""
    image = ImageParams()
    paths = sorted((folder / "images").rglob("*.jpg"))[:n]
    squares = np.stack([decode_input(path.read_bytes(), image) for path in paths])
    store = make_store(folder / "images.h5", squares)
    bare = np.lib.format.open_memmap(folder / "bare.npy", "w+", squares.dtype, squares.shape)
    bare[:] = squares
    bare.flush()
    bare = np.load(folder / "bare.npy", mmap_mode="r")
    order = np.random.default_rng(0).permutation(n)
    decoding = seconds_an_image(lambda rows: _decode_batch(paths, rows, image), np.arange(n), 1)
    shuffled_decoding = seconds_an_image(lambda rows: _decode_batch(paths, rows, image), order, 1)
    rows: list[Row] = [("decoding files to squares", 1 / decoding, "images/s")]
    targets = []
    for name, chosen, baseline, wanted in (
        ("sequential", np.arange(n), decoding, 10.0),
        ("shuffled", order, shuffled_decoding, 5.0),
    ):
        of_store = seconds_an_image(lambda r: np.array(store[_slice(r)]).sum(), chosen)
        of_array = seconds_an_image(lambda r: np.array(bare[_slice(r)]).sum(), chosen)
        rows += [
            (f"images.h5, {name} batches", 1 / of_store, "images/s"),
            (f"memory map of a bare array, {name} batches", 1 / of_array, "images/s"),
        ]
        targets += [
            Target(f"store: {name}, against decoding", baseline / of_store, "ratio", wanted, ">="),
            Target(f"store: {name}, against a map", of_array / of_store, "ratio", 0.7, ">="),
        ]
    return rows, targets


def make_store(path: Path, squares: NDArray[np.uint8]) -> ImageStore:
    """A store of these pixels."""
    n = len(squares)
    write_store(
        path,
        squares,
        shape=squares.shape,
        label_ids=np.zeros(n, np.int64),
        sha256=["0" * 64] * n,
        splits=["train"] * n,
        attributes={"classes": ["a"]},
    )
    return ImageStore(path)


def seconds_an_image(read: Any, rows: NDArray[np.int64], repetitions: int = 5) -> float:
    """Seconds an image in batches of 32, at best of the repetitions."""
    best = float("inf")
    for _ in range(repetitions):
        started = time.perf_counter()
        for start in range(0, len(rows), 32):
            read(rows[start : start + 32])
        best = min(best, (time.perf_counter() - started) / len(rows))
    return best


def _slice(rows: NDArray[np.int64]) -> Any:
    """A batch in order as a slice, which is how one reads it."""
    in_order = len(rows) == rows[-1] - rows[0] + 1 and (np.diff(rows) == 1).all()
    return slice(int(rows[0]), int(rows[-1]) + 1) if in_order else rows


def _decode_batch(paths: list[Path], rows: NDArray[np.int64], image: ImageParams) -> None:
    np.stack([decode_input(paths[row].read_bytes(), image) for row in rows])


def bench_duplicates(n: int) -> tuple[list[Row], list[Target]]:
    """Grouping thumbnails: pictures of all kinds, one in ten a mirrored copy of another."""
    rng = np.random.default_rng(0)
    copies = n // 10
    thumbnails = rng.integers(0, 256, (n, 16, 16), dtype=np.uint8)
    thumbnails[:copies] = thumbnails[copies : 2 * copies, :, ::-1]
    statistics = np.zeros(n, STATISTICS)
    statistics["thumbnail"] = thumbnails.reshape(n, -1)
    statistics["colours"] = NO_COLOUR
    started = time.perf_counter()
    found = find_near_duplicates(statistics, max_bits=4).turned
    seconds = time.perf_counter() - started
    n_clusters = int((np.bincount(found) > 1).sum())
    rows: list[Row] = [
        (f"grouping {n} pictures by their looks", seconds, "s"),
        ("clusters found", n_clusters, f"of {copies}"),
    ]
    return rows, [Target(f"duplicates: {n} pictures", seconds, "s", 60, "<=")]


if __name__ == "__main__":
    main()
