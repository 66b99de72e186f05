"""Fine-tuning: its loop beside the bare training step, and what it gains on unused pictures.

    python -m bench.fine_tune [--quick]

Speed: images a second of an epoch from data/images.h5 (read, augmented on the device, trained),
beside the same compiled step on one batch that is already in memory. Gain: the default data with
the frozen encoder and fine-tuned, on 3,000 pictures of the package that neither has seen, with the
paired 95 % interval; and the photos, where there is little to gain, with what the report says.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from bench.accuracy import ASSETS, ROOT
from bench.common import Target, median_seconds, print_table, write_results
from headstart.common import files
from headstart.common.files import parse_yaml, read_yaml
from headstart.dataset.pixel_store import ImageStore, write_store
from headstart.encoders.builders import build
from headstart.evaluation.comparison import Comparison, compare_models
from headstart.heads.config import HeadConfig
from headstart.heads.fitted import DenseWeights, FittedHead
from headstart.images.decode import decode_input
from headstart.models.assemble import assemble
from headstart.models.model_file import load_model
from headstart.models.pixels import predict_batch
from headstart.params.extract import ExtractParams
from headstart.params.image import ImageParams
from headstart.params.train import FineTuneParams
from headstart.training.fine_tune import Examples, Trainer

UNUSED = "data/sources/animal-silhouettes-rest.yaml"
UNUSED_PER_CLASS = 300
HEADERS = ["what", "value", "unit", "note"]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="speed on a few images, no results")
    quick = parser.parse_args().quick
    speed = measure_speed(n_images=64, size=64, weights="random") if quick else measure_speed()
    rows = speed.rows()
    targets = [Target("loop beside the bare step", speed.share, "fraction", 0.9, ">=")]
    if not quick:
        with tempfile.TemporaryDirectory() as folder:
            gain = measure_gain(Path(folder))
            rows += gain.rows()
            targets += gain.targets()
            rows += photos_rows(Path(folder))
    print_table(HEADERS, rows)
    if not quick:
        write_results("fine_tune", targets, HEADERS, rows)


@dataclass(frozen=True)
class Speed:
    """Images a second of the whole loop, and of the step alone on data in memory."""

    loop: float
    bare: float

    @property
    def share(self) -> float:
        return self.loop / self.bare

    def rows(self) -> list[list[object]]:
        return [
            ["fine-tuning loop", round(self.loop, 1), "images/s", "from images.h5"],
            ["bare training step", round(self.bare, 1), "images/s", "one batch in memory"],
        ]


def measure_speed(n_images: int = 512, size: int = 224, weights: str = "imagenet") -> Speed:
    """The loop and the bare step in turn, so that both see the same machine."""
    image = ImageParams(size=size)
    encoder = build(ExtractParams(weights=weights), image)
    model = assemble(encoder, [_head(int(encoder.output.shape[-1]))], 1.0)
    params = FineTuneParams()
    n_steps = -(-n_images // params.batch_size)
    trainer = Trainer(model, params, n_steps=n_steps, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        train = _pictures(Path(folder) / "images.h5", n_images, size)
        in_memory = next(iter(trainer.batches(train, 1)))

        def bare() -> None:
            for _ in range(n_steps):
                float(trainer.step(*in_memory))

        trainer.run_epoch(train, 1)
        loop_s = median_seconds(lambda: trainer.run_epoch(train, 2))
        bare_s = median_seconds(bare)
    return Speed(n_images / loop_s, n_steps * params.batch_size / bare_s)


@dataclass(frozen=True)
class Gain:
    """The fine-tuned model beside its frozen one on unused pictures."""

    comparison: Comparison
    minutes: float
    sentence: str

    def rows(self) -> list[list[object]]:
        found = self.comparison
        interval = f"{found.accuracy.low:+.4f} to {found.accuracy.high:+.4f}"
        return [
            ["frozen, unused pictures", round(found.champion_accuracy, 4), "accuracy", ""],
            ["fine-tuned, unused pictures", round(found.challenger_accuracy, 4), "accuracy", ""],
            ["gain", round(found.accuracy.value, 4), "accuracy", f"95 % interval {interval}"],
            ["train stage", round(self.minutes, 2), "minutes", self.sentence],
        ]

    def targets(self) -> list[Target]:
        low = self.comparison.accuracy.low
        return [
            # an interval that ends at 0 shows no gain
            Target("least gain on unused pictures (95 %), above 0", low, "accuracy", 1e-6, ">="),
            Target("minutes of the train stage", self.minutes, "minutes", 10.0, "<="),
        ]


def measure_gain(folder: Path) -> Gain:
    """Train twice in one workspace, and compare on pictures of the package's rest."""
    workspace = _workspace(folder, "gain", {})
    _repro(workspace, folder, "train")
    frozen, image, paths, labels = _unused(folder, workspace)
    _override(workspace / "params.yaml", {"train.fine_tune.enabled": "true"})
    started = time.perf_counter()
    _repro(workspace, folder, "train")
    minutes = (time.perf_counter() - started) / 60
    tuned = _probabilities(workspace, paths, image)
    summary = files.read_json(workspace / "reports" / "train" / "summary.json")
    comparison = compare_models(frozen, tuned, labels, seed=0)
    return Gain(comparison, minutes, summary["fine_tuning"]["sentence"])


def photos_rows(folder: Path) -> list[list[object]]:
    """What the train stage says of fine-tuning on the photos of the test assets."""
    photos = ASSETS / "animals"
    if not photos.is_dir():
        return []
    settings = {"data.source": str(photos.resolve()), "train.fine_tune.enabled": "true"}
    workspace = _workspace(folder, "photos", settings)
    _repro(workspace, folder, "train")
    outcome = files.read_json(workspace / "reports" / "train" / "summary.json")["fine_tuning"]
    return [["600 photos, kept", str(outcome["kept"]), "", outcome["sentence"]]]


def _head(feature_dim: int, n_classes: int = 10) -> FittedHead:
    """A linear head; what its weights are does not change the speed."""
    kernel = np.random.default_rng(0).normal(0, 0.05, (feature_dim, n_classes))
    dense = DenseWeights(kernel.astype(np.float32), np.zeros(n_classes, np.float32))
    return FittedHead(HeadConfig(hidden_layers=0, normalisation="none"), n_classes, (dense,))


def _pictures(path: Path, n_images: int, size: int) -> Examples:
    generator = np.random.default_rng(0)
    shape = (n_images, size, size, 3)
    write_store(
        path,
        (generator.integers(0, 256, shape[1:], dtype=np.uint8) for _ in range(n_images)),
        shape=shape,
        label_ids=np.arange(n_images) % 10,
        sha256=[f"{row:064d}" for row in range(n_images)],
        splits=["train"] * n_images,
        attributes={"classes": [str(index) for index in range(10)]},
    )
    store = ImageStore(path)
    weights = np.ones(n_images, np.float32)
    return Examples(store, np.arange(n_images), store.labels, weights)


def _unused(
    folder: Path, workspace: Path
) -> tuple[NDArray[np.float64], ImageParams, list[Path], NDArray[np.int64]]:
    """Frozen probabilities, and the pictures that were left out of the default data."""
    rest = _workspace(folder, "rest", {"data.source": UNUSED})
    _repro(rest, folder, "fetch")
    root = rest / "data" / "fetched"
    classes = sorted(path.name for path in root.iterdir())
    paths = [p for name in classes for p in sorted((root / name).iterdir())[:UNUSED_PER_CLASS]]
    labels = np.repeat(np.arange(len(classes)), UNUSED_PER_CLASS)
    image = ImageParams()
    return _probabilities(workspace, paths, image), image, paths, labels


def _probabilities(workspace: Path, paths: list[Path], image: ImageParams) -> NDArray[np.float64]:
    loaded = load_model(workspace / "models" / "model.h5")
    rows = [
        predict_batch(loaded.model, decode_input(path.read_bytes(), image)[None]) for path in paths
    ]
    return np.concatenate(rows).astype(np.float64)


def _workspace(folder: Path, name: str, values: dict[str, str]) -> Path:
    workspace = folder / name
    subprocess.run(["git", "clone", "-q", str(ROOT), str(workspace)], check=True)
    _override(workspace / "params.yaml", values)
    return workspace


def _override(path: Path, values: dict[str, str]) -> None:
    params = read_yaml(path)
    for key, text in values.items():
        *parents, last = key.split(".")
        section = params
        for parent in parents:
            section = section[parent]
        section[last] = parse_yaml(text)
    path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def _repro(workspace: Path, folder: Path, stage: str) -> None:
    environment = {**os.environ, "HEADSTART_CACHE": str(folder / "cache")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    subprocess.run(["dvc", "repro", "-q", stage], cwd=workspace, env=environment, check=True)


if __name__ == "__main__":
    main()
