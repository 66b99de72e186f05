"""Extraction beside its bound and beside the usual ways, and what the cache, memory and files cost.

    python -m bench.extract [--quick] [--only growth reading]

The bound is 1 / (1 / f + 1 / d), with f and d the images a second that the forward pass and the
decoding reach alone on all cores: nothing that does both on the same cores is faster. Every run
is a process of its own over a feature cache of its own; rounds alternate, and medians count.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.common import Target, keep_others, print_table, write_results
from bench.extract_data import ROOT, manifest_of, photos, silhouettes, variants
from headstart.features.feature_store import FeatureRows, FeatureStore, write_features

Row = list[object]
HEADERS = ["measured", "encoder", "runtime", "value", "unit"]
LITE0, VGG16 = "efficientnet-lite0", "vgg16"
# The export of ONNX files needs TensorFlow: other backends of Keras run in Keras alone.
ONLY_KERAS = os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow"
COMBINATIONS = tuple(
    (runtime, precision)
    for runtime, precision in (
        ("onnxruntime", "float32"),
        ("openvino", "float32"),
        ("openvino", "bfloat16"),
        ("keras", "float32"),
        ("keras", "bfloat16"),
    )
    if runtime == "keras" or not ONLY_KERAS
)
_OTHER_ROUNDS = 3
OWN = ("keras", "float32") if ONLY_KERAS else ("onnxruntime", "float32")
FAST = ("keras", "bfloat16") if ONLY_KERAS else ("openvino", "bfloat16")


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        rounds: of what targets rest on, by encoder; other runtimes run in the first three.
    """

    rounds: dict[str, int]
    images: dict[str, int]
    memory: tuple[int, int]
    rows: int


FULL = Size({LITE0: 7, VGG16: 1}, {LITE0: 600, VGG16: 160}, (500, 5000), 100_000)
QUICK = Size({LITE0: 1, VGG16: 1}, {LITE0: 24, VGG16: 8}, (12, 24), 1000)


class Bench:
    """One measurement: its folders, and what was found so far."""

    def __init__(self, folder: Path, size: Size) -> None:
        self.folder, self.size = folder, size
        self.cache = folder / "cache"
        self.photos = photos() or silhouettes(folder / "silhouettes")
        self.rows: list[Row] = []
        self.targets: list[Target] = []

    def run(
        self, kind: str, encoder: str, how: tuple[str, str], images: Path, limit: int
    ) -> dict[str, float]:
        """One process of bench.extract_runs; returns what it printed."""
        return self.answer(self.start(kind, encoder, how, images, limit))

    def start(
        self, kind: str, encoder: str, how: tuple[str, str], images: Path, limit: int
    ) -> subprocess.Popen[str]:
        out = Path(tempfile.mkdtemp(dir=self.folder))
        arguments = [kind, str(images), str(limit), encoder, *how, str(out)]
        return subprocess.Popen(
            [sys.executable, "-m", "bench.extract_runs", *arguments],
            cwd=ROOT,
            env=os.environ | {"HEADSTART_CACHE": str(self.cache)},
            stdout=subprocess.PIPE,
            text=True,
        )

    def answer(self, process: subprocess.Popen[str]) -> dict[str, float]:
        text, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"{process.args!r} failed")
        found: dict[str, float] = json.loads(text.splitlines()[-1])
        return found

    def forget(self) -> None:
        """Empty the feature cache, but keep exported encoders and fetched weights."""
        shutil.rmtree(self.cache / "features", ignore_errors=True)

    def note(self, what: str, encoder: str, how: str, value: float, unit: str) -> None:
        self.rows.append([what, encoder, how, round(value, 4), unit])
        print_table(HEADERS, self.rows[-1:])

    def target(self, name: str, value: float, unit: str, target: float, sense: Any) -> None:
        self.targets.append(Target(name, round(value, 4), unit, target, sense))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run that writes no results")
    parser.add_argument(
        "--only", nargs="*", choices=PARTS, default=list(PARTS), help="the other figures stay"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headstart-bench-") as name:
        bench = Bench(Path(name), QUICK if arguments.quick else FULL)
        for part in arguments.only:
            PARTS[part](bench)
    print_table(HEADERS, bench.rows)
    if not arguments.quick:
        keep_others("extract", bench.targets, bench.rows, n_key=3)
        write_results("extract", bench.targets, HEADERS, bench.rows)


def speeds(bench: Bench) -> None:
    """Both encoders."""
    for encoder in (LITE0, VGG16):
        speed(bench, encoder)


def speed(bench: Bench, encoder: str) -> None:
    """Every runtime beside its bound, and the default beside the peers."""
    limit = bench.size.images[encoder]
    rates: dict[str, list[float]] = {}
    for number in range(bench.size.rounds[encoder]):
        for how in COMBINATIONS if number < _OTHER_ROUNDS else (OWN, FAST):
            # The first process builds and exports what is missing, before any clock starts.
            bound = bench.run("bound", encoder, how, bench.photos, limit)
            bench.forget()
            stage = bench.run("stage", encoder, how, bench.photos, limit)
            name = " ".join(how)
            rates.setdefault(f"forward {name}", []).append(bound["forward"])
            rates.setdefault(f"bound {name}", []).append(bound["bound"])
            rates.setdefault(f"stage {name}", []).append(stage["rate"])
            rates.setdefault(f"share {name}", []).append(stage["rate"] / bound["bound"])
        for peer in ("dataset", "loop"):
            found = bench.run(peer, encoder, ("keras", "float32"), bench.photos, limit)
            rates.setdefault(peer, []).append(found["rate"])
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, value in medians.items():
        what, _, runtime = name.partition(" ")
        unit = "of the bound" if what == "share" else "images/s"
        bench.note(what, encoder, runtime, value, unit)
    for peer in ("dataset", "loop"):
        # tf.data tunes itself, and comes to one of two speeds from process to process.
        bench.note(f"{peer}, slowest", encoder, "", min(rates[peer]), "images/s")
        bench.note(f"{peer}, fastest", encoder, "", max(rates[peer]), "images/s")
    _speed_targets(bench, encoder, medians)


def _speed_targets(bench: Bench, encoder: str, medians: dict[str, float]) -> None:
    peer = max(medians["dataset"], medians["loop"])
    own, fast = " ".join(OWN), " ".join(FAST)
    bench.target(f"{encoder}: share of the bound", medians[f"share {own}"], "", 0.9, ">=")
    wanted = {LITE0: 2.6, VGG16: 1.7}[encoder]
    times = medians[f"stage {fast}"] / peer
    bench.target(f"{encoder}: bfloat16 beside the better peer", times, "times", wanted, ">=")
    if encoder == LITE0:
        times = medians[f"stage {own}"] / peer
        bench.target(f"{encoder}: float32 beside the better peer", times, "times", 1.8, ">=")


def accuracy(bench: Bench) -> None:
    """The same logistic regression on float32 and on bfloat16 features; cosine of the rows."""
    data = {"default data": silhouettes(bench.folder / "default")}
    if photos() is not None:
        data["photos"] = bench.photos
    for name, folder in data.items():
        for encoder in (LITE0, VGG16):
            limit = 10**9 if bench.size is FULL else 40
            if encoder == VGG16 and name == "default data" and bench.size is FULL:
                limit = 500
            reference = _features(bench, encoder, OWN, folder, limit)
            fast = _features(bench, encoder, FAST, folder, limit)
            labels = manifest_of(folder, limit).label_ids
            before, after = _cross_validated(reference, labels), _cross_validated(fast, labels)
            cosine = float(_cosines(reference, fast).min())
            bench.note(f"accuracy on {name}", encoder, " ".join(OWN), before, "")
            bench.note(f"accuracy on {name}", encoder, " ".join(FAST), after, "")
            bench.note(f"least cosine on {name}", encoder, " ".join(FAST), cosine, "")
            lost = 100 * (before - after)
            where = f"{encoder} on {name}"
            bench.target(f"{where}: accuracy lost to bfloat16", lost, "points", 0.3, "<=")
            bench.target(f"{where}: least cosine similarity", cosine, "", 0.99, ">=")


def _features(
    bench: Bench, encoder: str, how: tuple[str, str], folder: Path, limit: int
) -> NDArray[np.float32]:
    before = set(bench.folder.iterdir())
    bench.run("stage", encoder, how, folder, limit)
    (out,) = [path for path in set(bench.folder.iterdir()) - before if path.name != "cache"]
    with FeatureStore(out / "features.h5") as store:
        return store.rows(np.arange(len(store))).features[:, 0]


def _cross_validated(features: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    return float(cross_val_score(model, features, labels, cv=folds).mean())


def _cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(axis=1) / norms, np.float32)


def growth(bench: Bench) -> None:
    """Memory at two sizes; nothing new; 1 % new; two processes at once."""
    few, many = bench.size.memory
    n_new = max(1, many // 100)
    folder = variants(bench.photos, bench.folder / "variants", many + n_new)
    how, name = OWN, " ".join(OWN)
    # Building and exporting the encoder takes more memory than any number of images.
    bench.run("bound", LITE0, how, folder, few)
    bench.forget()
    small = bench.run("stage", LITE0, how, folder, few)
    bench.forget()
    full = bench.run("stage", LITE0, how, folder, many)
    nothing = bench.run("stage", LITE0, how, folder, many)
    little = bench.run("stage", LITE0, how, folder, many + n_new)
    for label, found in (("", full), (", nothing new", nothing), (", 1 % new", little)):
        what = f"stage with {many} images{label}"
        bench.note(what, LITE0, name, found["seconds"], "s")
    grown = full["peak_rss_mb"] / small["peak_rss_mb"]
    bench.note(f"peak memory at {few} images", LITE0, name, small["peak_rss_mb"], "MB")
    bench.note(f"peak memory at {many} images", LITE0, name, full["peak_rss_mb"], "MB")
    bench.target(f"memory at {many} beside {few} images", grown, "times", 1.1, "<=")
    share = (little["seconds"] - nothing["seconds"]) / full["seconds"]
    bench.target("1 % new, beyond start-up, of the full time", share, "", 0.02, "<=")
    _two_at_once(bench, folder, many, full["seconds"])


def _two_at_once(bench: Bench, folder: Path, n_images: int, alone_s: float) -> None:
    bench.forget()
    before = set(bench.folder.iterdir())
    started = time.perf_counter()
    processes = [bench.start("stage", LITE0, OWN, folder, n_images) for _ in range(2)]
    found = [bench.answer(process) for process in processes]
    seconds = time.perf_counter() - started
    outs = [path for path in set(bench.folder.iterdir()) - before if path.name != "cache"]
    files = {(out / "features.h5").read_bytes() for out in outs}
    bench.note("two processes at once", LITE0, " ".join(OWN), seconds, f"s (alone {alone_s:.1f})")
    twice = sum(answer["n_extracted"] for answer in found) / n_images - 1
    bench.target("rows extracted twice by two processes", twice, "", 0.02, "<=")
    bench.target("different results of two processes", len(files) - 1, "", 0, "<=")


def reading(bench: Bench) -> None:
    """Loading a split beside np.load of the same array; random rows of a large file."""
    n_rows, dim = bench.size.rows, 1280
    generator = np.random.default_rng(0)
    features = generator.standard_normal((n_rows, 1, dim), np.float32)
    splits = generator.choice(["train", "validation", "test"], n_rows, p=[0.7, 0.15, 0.15])
    digests = [f"{number:064x}" for number in range(n_rows)]
    rows = FeatureRows(np.zeros(n_rows, np.int64), digests, digests, splits.tolist(), digests)
    path, plain = bench.folder / "large.h5", bench.folder / "train.npy"
    write_features(
        path,
        rows=rows,
        parts=[features],
        n_views=1,
        encoder="made-up",
        blocks={"last": slice(0, dim)},
        classes=["one"],
        recipe={},
        fingerprint="0" * 64,
    )
    np.save(plain, features[splits == "train"])
    wanted = generator.integers(0, n_rows, min(10_000, n_rows))
    seconds: dict[str, list[float]] = {"split": [], "np.load": [], "random": []}
    for _ in range(5):
        with FeatureStore(path) as store:
            store.indices("train")
            seconds["split"].append(_seconds(lambda: store.split("train")))
        seconds["np.load"].append(_seconds(lambda: np.load(plain)))
        with FeatureStore(path) as store:
            seconds["random"].append(_seconds(lambda: store.rows(wanted)))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in medians.items():
        bench.note(f"reading: {name}", "", "", value, "s")
    speed = medians["np.load"] / medians["split"]
    bench.target("loading a split beside np.load", speed, "times the speed", 0.8, ">=")
    bench.target(f"10,000 random rows of {n_rows:,}", medians["random"], "s", 1.0, "<=")


PARTS = {"speed": speeds, "accuracy": accuracy, "growth": growth, "reading": reading}


def _seconds(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
