"""A cold `dvc repro extract`: from files to features, beside the bound, the peers, and before.

    python -m bench.pipeline [--quick] [--before COMMIT] [--only DATA ...]

Data: 600 photographs of the test assets; 1,000 of 12 megapixels made from them, with a camera's
noise, some lying on their side by EXIF; the default data. Each run is a fresh clone with an empty
cache but for exported encoders, and medians of rounds count. The bound is one decoding at the
needed scale and one forward pass on all cores, each alone. *Stages* is what their own lines say;
the rest of `dvc repro` is DVC, the start of processes, and the hashing of outputs. *Before* is this
project before images were decoded at a scale, and once (its export needs tf2onnx: `pip install
--no-deps tf2onnx flatbuffers`). The peers are
`keras.utils.image_dataset_from_directory` with `predict`, and the usual loop, as in
bench/extract_runs.py; they hash, check and group nothing.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from bench.common import Target, keep_others, print_table, write_results
from bench.extract_data import ROOT, photos
from headstart.cache.shards import read_shard

BEFORE = "78d34f8^"
_STAGE = re.compile(r"^(fetch|ingest|pack|extract) .*\(([\d.]+) s\)$", re.MULTILINE)
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Run:
    """One `dvc repro extract`: seconds in all, and of each stage by its own line."""

    seconds: float
    stages: dict[str, float]

    @property
    def in_stages(self) -> float:
        return sum(self.stages.values())


class Project:
    """A commit of this project with a cache of its own, in which encoders are exported."""

    def __init__(self, folder: Path, commit: str) -> None:
        self.folder, self.commit = folder, commit
        self.cache = folder / "cache"
        self.first_row_s = 0.0

    def export(self, source: Path) -> None:
        """Export the encoder by a first extraction; notes when its first row came."""
        started = time.time()
        run = self.run(source)
        shards = [*self.cache.glob("features/*/shards/*.h5")]
        # Of the extract stage: what came before it is not part of it.
        before = run.seconds - run.stages["extract"]
        first = min(path.stat().st_mtime for path in shards) - started
        self.first_row_s = first - before

    def run(self, source: Path, *, clone: Path | None = None) -> Run:
        """Run up to extract in a fresh clone, or again in one."""
        if clone is None:
            clone = self.clone()
            for name in ("features", "pixels", "ingest"):
                shutil.rmtree(self.cache / name, ignore_errors=True)
        params = clone / "params.yaml"
        text = re.sub(
            r"(?m)^  source: [^#\n]*", f"  source: {source}  ", params.read_text(), count=1
        )
        params.write_text(text)
        # The stages run by `python`: by the one that runs this.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "dvc", "repro", "extract"],
            cwd=clone,
            env=os.environ | {"HEADSTART_CACHE": str(self.cache), "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - started
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        found = _STAGE.findall(done.stdout + "\n" + done.stderr)
        return Run(seconds, {name: float(value) for name, value in found})

    def clone(self) -> Path:
        """A fresh clone of the commit."""
        clone = Path(tempfile.mkdtemp(dir=self.folder)) / "headstart"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        subprocess.run(["git", "-C", str(clone), "checkout", "-q", self.commit], check=True)
        return clone

    def n_pixels(self) -> int:
        """How many images were decoded for their pixels so far."""
        shards = self.cache.glob("pixels/*/shards/[!.]*.h5")
        return sum(len(read_shard(path).keys) for path in shards)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run that writes no results")
    parser.add_argument("--before", default=BEFORE, help="the commit to compare with")
    parser.add_argument("--only", nargs="*", help="of these data; the other figures stay")
    arguments = parser.parse_args()
    source = photos()
    if source is None:
        raise SystemExit("bench.pipeline needs the photographs of the test assets")
    rows: list[list[object]] = []
    targets: list[Target] = []
    head = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    with tempfile.TemporaryDirectory(prefix="headstart-bench-") as name:
        folder = Path(name)
        small = few_of(source, folder / "few", 12)
        projects = {}
        for what, commit in (("now", head), ("before", arguments.before)):
            (folder / what).mkdir()
            projects[what] = Project(folder / what, commit)
            projects[what].export(small)
        targets.append(
            Target(
                "first row of a first extraction, after the stage began",
                round(projects["now"].first_row_s, 2), "s", 3.0, "<=",
            )
        )  # fmt: skip
        if arguments.quick:
            data = {"photographs": (small, 1, 1, 12), "12 megapixels": (small, 1, 1, 12)}
        else:
            # Of so many images the peers load; rates do not depend on their number.
            data = {
                "photographs": (source, 3, 7, 600),
                "12 megapixels": (folder / "large", 3, 3, 300),
                "default data": (ROOT / "data" / "sources" / "animal-silhouettes.yaml", 3, 0, 0),
            }
            data = {name: of for name, of in data.items() if name in (arguments.only or data)}
            if "12 megapixels" in data:
                photographs(source, folder / "large", 1000)
        for what, (of, rounds, peer_rounds, limit) in data.items():
            found = measure(projects, of, rounds, peer_rounds, limit, folder)
            rows += [[what, *row] for row in rows_of(found)]
            print_table(HEADERS, rows[-len(rows_of(found)) :])
            targets += targets_of(what, found)
        targets += grown(projects["now"], source, folder / "grown", rows)
    print_table(HEADERS, rows)
    if not arguments.quick:
        keep_others("pipeline", targets, rows, n_key=2)
        write_results("pipeline", targets, HEADERS, rows)


HEADERS = ["data", "what", "seconds", "images/s"]


@dataclass(frozen=True)
class Found:
    """What was measured of one data set; seconds, or images a second for peers."""

    n_images: int
    runs: dict[str, list[Run]]
    bound: dict[str, float]
    peers: dict[str, list[float]]

    def in_stages(self, what: str) -> float:
        return statistics.median(run.in_stages for run in self.runs[what])

    @property
    def bound_s(self) -> float:
        return self.n_images / self.bound["bound"] if self.bound else 0.0


def measure(
    projects: dict[str, Project],
    source: Path,
    rounds: int,
    peer_rounds: int,
    limit: int,
    folder: Path,
) -> Found:
    """Run both commits in turn, then the bound and the peers."""
    runs: dict[str, list[Run]] = {what: [] for what in projects}
    n_images = 0
    for number in range(rounds):
        for what, project in projects.items():
            # Before, 12 megapixels take minutes.
            if what == "now" or number == 0 or runs[what][0].in_stages < 60:
                runs[what].append(project.run(source))
        n_images = projects["now"].n_pixels()
    bound: dict[str, float] = {}
    peers: dict[str, list[float]] = {}
    if source.is_dir():
        bound = peer("bound", source, 200, projects["now"].cache, folder)
        for _ in range(peer_rounds):
            for name in ("dataset", "loop"):
                rate = peer(name, source, limit, projects["now"].cache, folder)["rate"]
                peers.setdefault(name, []).append(rate)
    return Found(n_images, runs, bound, peers)


def peer(kind: str, source: Path, limit: int, cache: Path, folder: Path) -> dict[str, float]:
    """One process of bench.extract_runs; what it printed."""
    out = tempfile.mkdtemp(dir=folder)
    runtime = "onnxruntime" if kind == "bound" else "keras"
    arguments = [kind, str(source), str(limit), "efficientnet-lite0", runtime, "float32", out]
    done = subprocess.run(
        [sys.executable, "-m", "bench.extract_runs", *arguments],
        cwd=ROOT,
        env=os.environ | {"HEADSTART_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def rows_of(found: Found) -> list[list[object]]:
    """What, seconds and images a second, medians over rounds."""
    n = found.n_images
    rows: list[list[object]] = []
    for what, runs in found.runs.items():
        for stage in ("fetch", "ingest", "pack", "extract"):
            seconds = statistics.median(run.stages.get(stage, 0.0) for run in runs)
            rows.append([f"{what}: {stage}", round(seconds, 2), ""])
        seconds = found.in_stages(what)
        rows.append([f"{what}: these stages", round(seconds, 2), round(n / seconds, 1)])
        whole = statistics.median(run.seconds for run in runs)
        rows.append([f"{what}: dvc repro", round(whole, 2), round(n / whole, 1)])
    if found.bound:
        rows.append(["bound", round(found.bound_s, 2), round(found.bound["bound"], 1)])
        rows += [
            [f"{name} alone", round(n / found.bound[name], 2), round(found.bound[name], 1)]
            for name in ("decode", "forward")
        ]
    for name, rates in found.peers.items():
        for which, rate in (
            ("median", statistics.median(rates)), ("slowest", min(rates)), ("fastest", max(rates))
        ):  # fmt: skip
            rows.append([f"{name}, {which}", round(n / rate, 2), round(rate, 1)])
    return rows


def targets_of(what: str, found: Found) -> list[Target]:
    """Targets of issue 15, as far as they concern this data set."""
    seconds = found.in_stages("now")
    times = found.in_stages("before") / seconds
    least = {"12 megapixels": 8.0, "photographs": 1.3}.get(what)
    targets = []
    if least is not None:
        targets.append(Target(f"{what}: over before", round(times, 2), "times", least, ">="))
    if found.bound:
        share = found.bound_s / seconds
        targets.append(Target(f"{what}: share of the bound", round(share, 3), "", 0.8, ">="))
        forward = found.n_images / found.bound["forward"]
        extract = statistics.median(run.stages["extract"] for run in found.runs["now"])
        share = forward / extract
        targets.append(
            Target(f"{what}: extract, share of the forward pass", round(share, 3), "", 0.95, ">=")
        )
    if found.peers and what == "12 megapixels":
        best = max(statistics.median(rates) for rates in found.peers.values())
        times = found.n_images / seconds / best
        targets.append(Target(f"{what}: over the better peer", round(times, 2), "times", 1.8, ">="))
    return targets


def grown(project: Project, source: Path, folder: Path, rows: list[list[object]]) -> list[Target]:
    """One new image of a hundred: what is decoded, and what time it takes."""
    paths = sorted(path for path in source.glob("*/*") if path.is_file())
    new = {path for number, path in enumerate(paths) if number % 100 == 7}
    for path in paths:
        if path not in new:
            _link(path, source, folder)
    clone = project.clone()
    for name in ("features", "pixels", "ingest"):
        shutil.rmtree(project.cache / name, ignore_errors=True)
    cold = project.run(folder, clone=clone)
    before = project.n_pixels()
    for path in new:
        _link(path, source, folder)
    again = project.run(folder, clone=clone)
    n_more = project.n_pixels() - before
    rows.append(["1 % new", "cold: these stages", round(cold.in_stages, 2), ""])
    rows.append(["1 % new", "again: these stages", round(again.in_stages, 2), ""])
    rows += [["1 % new", f"again: {k}", round(v, 2), ""] for k, v in again.stages.items()]
    rows.append(["1 % new", "again: dvc repro", round(again.seconds, 2), ""])
    return [
        Target("1 % new: decoded beyond the new images", n_more - len(new), "images", 0, "<="),
        Target(
            "1 % new: time of the stages beside cold",
            round(again.in_stages / cold.in_stages, 3), "times", 0.02, "<=",
        ),
    ]  # fmt: skip


def few_of(source: Path, folder: Path, n_a_class: int) -> Path:
    """So many files of each class."""
    for own in sorted(path for path in source.iterdir() if path.is_dir()):
        for path in sorted(own.iterdir())[:n_a_class]:
            _link(path, source, folder)
    return folder


def _link(path: Path, source: Path, folder: Path) -> None:
    target = folder / path.relative_to(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)


def photographs(source: Path, folder: Path, n_images: int) -> Path:
    """So many pictures of 4,000 × 3,000 pixels with noise, quality 90, some on their side."""
    paths = sorted(path for path in source.glob("*/*") if path.is_file())
    with ProcessPoolExecutor() as pool:
        list(pool.map(_photograph, _jobs(paths, folder, n_images), chunksize=8))
    return folder


def _jobs(paths: list[Path], folder: Path, n_images: int) -> Iterator[tuple[Path, Path, int]]:
    for number in range(n_images):
        path = paths[number % len(paths)]
        target = folder / path.parent.name / f"{number:04}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        yield path, target, number


def _photograph(job: tuple[Path, Path, int]) -> None:
    path, target, number = job
    with Image.open(path) as image:
        large = image.convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC)
    chance = np.random.default_rng(number)
    noise = chance.integers(-8, 9, (3000, 4000, 1), np.int16)
    levels = np.clip(np.asarray(large, np.int16) + noise, 0, 255).astype(np.uint8)
    picture, exif = Image.fromarray(levels), Image.Exif()
    if number % 5 == 0:
        # To be turned by a quarter when it is shown.
        picture = picture.transpose(Image.Transpose.ROTATE_90)
        exif[_ORIENTATION] = 6
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=90, exif=exif)
    target.write_bytes(buffer.getvalue())


if __name__ == "__main__":
    main()
