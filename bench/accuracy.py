"""Test accuracy over five split seeds, beside logistic regression on the same features and splits.

    python -m bench.accuracy [--quick]

Data: the default data (1,500 animal silhouettes), and 600 photos of the test assets, with
EfficientNet-Lite0 and VGG16. Each seed is a whole `dvc repro` in a workspace of its own, from one
feature cache: the split differs, the features do not.
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

from sklearn.linear_model import LogisticRegression

from bench.common import Target, print_table, write_results
from headstart.common.files import sha256_of_file
from headstart.features.feature_store import FeatureStore

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("HEADSTART_TEST_ASSETS") or ROOT.parent / "shared" / "assets")
VGG16 = "weights/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
SEEDS = range(5)


@dataclass(frozen=True)
class Case:
    """One data set with one encoder; `overrides` are assignments to params.yaml."""

    name: str
    encoder: str
    target: float
    overrides: dict[str, str]


def cases() -> list[Case]:
    """Those whose data and weights are here."""
    found = [Case("animal silhouettes", "efficientnet-lite0", 0.955, {})]
    photos = ASSETS / "animals"
    if photos.is_dir():
        source = {"data.source": str(photos.resolve())}
        found.append(Case("600 photos", "efficientnet-lite0", 0.985, source))
        path = (ASSETS / VGG16).resolve()
        weights = {
            "extract.encoders": "vgg16",
            "extract.weights": str(path),
            "extract.weights_sha256": sha256_of_file(path),
        }
        found.append(Case("600 photos", "vgg16", 0.965, {**source, **weights}))
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="one seed, nothing written")
    quick = parser.parse_args().quick
    headers = [
        "data", "encoder", "test accuracy", "± sd", "logistic regression", "± sd", "repro s",
    ]  # fmt: skip
    rows: list[list[object]] = []
    targets = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases():
            measured = [
                measure(case, seed, Path(folder)) for seed in (SEEDS[:1] if quick else SEEDS)
            ]
            ours, theirs = [m.ours for m in measured], [m.logistic for m in measured]
            seconds = statistics.median(m.seconds for m in measured)
            mean = statistics.fmean(ours)
            theirs_mean = round(statistics.fmean(theirs), 4)
            scored: list[object] = [round(mean, 4), _sd(ours), theirs_mean, _sd(theirs)]
            rows.append([case.name, case.encoder, *scored, round(seconds, 1)])
            name = f"mean test accuracy, {case.name}, {case.encoder}"
            targets.append(Target(name, mean, "fraction", case.target, ">="))
    print_table(headers, rows)
    if not quick:
        write_results("accuracy", targets, headers, rows)


@dataclass(frozen=True)
class Measured:
    """Of one seed: both test accuracies, and the seconds of `dvc repro`."""

    ours: float
    logistic: float
    seconds: float


def measure(case: Case, seed: int, folder: Path) -> Measured:
    """One `dvc repro` in a copy of the project."""
    workspace = folder / f"{case.name}-{case.encoder}-{seed}".replace(" ", "-")
    subprocess.run(["git", "clone", "-q", str(ROOT), str(workspace)], check=True)
    _override(workspace / "params.yaml", {"seed": str(seed), **case.overrides})
    environment = {**os.environ, "HEADSTART_CACHE": str(folder / "cache")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    started = time.perf_counter()
    subprocess.run(["dvc", "repro", "-q"], cwd=workspace, env=environment, check=True)
    seconds = time.perf_counter() - started
    metrics = json.loads((workspace / "reports" / "metrics.json").read_text(encoding="utf-8"))
    logistic = logistic_accuracy(workspace / "data" / "features.h5")
    shutil.rmtree(workspace)
    print(f"{case.name}, {case.encoder}, seed {seed}: {metrics['accuracy']:.4f}", flush=True)
    return Measured(metrics["accuracy"], logistic, seconds)


def logistic_accuracy(features: Path) -> float:
    """Test accuracy of scikit-learn's logistic regression with its default penalty."""
    with FeatureStore(features) as store:
        train, test = store.split("train"), store.split("test")
        classifier = LogisticRegression(max_iter=1000)
        classifier.fit(train.features[:, 0], train.label_ids)
        return float(classifier.score(test.features[:, 0], test.label_ids))


def _override(path: Path, values: dict[str, str]) -> None:
    import yaml

    from headstart.common.files import parse_yaml, read_yaml

    params = read_yaml(path)
    for key, text in values.items():
        *parents, last = key.split(".")
        section = params
        for parent in parents:
            section = section[parent]
        section[last] = parse_yaml(text)
    path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def _sd(values: list[float]) -> float:
    return round(statistics.stdev(values), 4) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
