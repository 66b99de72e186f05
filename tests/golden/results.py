"""Run the stages on the golden pictures and read what they wrote; the package is a black box.

Only `out_of_fold_logits` imports it: the engine of heads may be replaced, and then this function is
adapted while the values hold.
"""

import base64
import csv
import hashlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import features

from tests.conftest import REPOSITORY
from tests.e2e.conftest import free_port
from tests.golden.pictures import write_golden_pictures

PARAMS = """
seed: 0
image: {size_px: 96}
data: {source: data/own}
pack: {splits: [train, validation, test]}
search: {n_trials: 3, metric: log_loss}
train: {seeds: 1}
evaluate: {n_bootstrap: 100}
"""
STAGES = ("fetch", "ingest", "pack", "extract", "search", "train", "package", "evaluate")
# One process, so that libraries are imported once.
ALL_STAGES = f"""
import runpy
for stage in {STAGES}:
    runpy.run_module("headstart.stages." + stage, run_name="__main__", alter_sys=True)
"""
HEADS: dict[str, dict[str, Any]] = {
    "network": {"hidden_layers": 1, "width": 16, "normalisation": "layer_norm", "epochs": 6},
    "linear network": {"hidden_layers": 0, "normalisation": "none", "epochs": 6},
    "ridge": {"kind": "ridge", "penalty": 100.0},
    "logistic regression": {"kind": "logistic_regression", "normalisation": "none", "l2": 0.01},
}
N_PROJECTIONS = 8


def run_golden_project(root: Path) -> None:
    """Make a project of the golden pictures in `root` and run the stages there."""
    write_golden_pictures(root / "data/own")
    (root / "dvc.yaml").write_text((REPOSITORY / "dvc.yaml").read_text())
    (root / "data/splits.csv").write_text((REPOSITORY / "data/splits.csv").read_text())
    (root / "params.yaml").write_text(PARAMS)
    done = subprocess.run(
        [sys.executable, "-c", ALL_STAGES],
        cwd=root,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout


def golden_results(root: Path) -> dict[str, Any]:
    """Return what the stages made of each picture, as JSON holds it."""
    with (root / "data/manifest.csv").open(encoding="utf-8") as stream:
        manifest = {row["path"]: row for row in csv.DictReader(stream)}
    first_of_group: dict[str, str] = {}
    for path in sorted(manifest):
        first_of_group.setdefault(manifest[path]["group"], path)
    pixels = _pixels(root)
    of_last, of_others = _projections(root, last=True), _projections(root, last=False)
    return {
        "made_with": versions(),
        "rows": {
            path: {
                "label": row["label"],
                "split": row["split"],
                "group": first_of_group[row["group"]],
                "pixels_sha256": hashlib.sha256(pixels[row["sha256"]].tobytes()).hexdigest(),
                "pixels_mean": _rounded(pixels[row["sha256"]].mean((0, 1)), 2),
                "features": _rounded(of_last[row["sha256"]], 4),
                "other_blocks": _rounded(of_others[row["sha256"]], 4),
            }
            for path, row in sorted(manifest.items())
        },
        "out_of_fold_logits": {
            name: {path: _rounded(logits, 4) for path, logits in sorted(of_head.items())}
            for name, of_head in out_of_fold_logits(root).items()
        },
        "probabilities": {
            path: _rounded(values, 5) for path, values in sorted(probabilities(root).items())
        },
    }


def versions() -> dict[str, str]:
    """Return the versions of what encodes and decodes the pictures."""
    found = {"pillow": PIL.__version__}
    for name in ("libjpeg_turbo", "zlib_ng"):
        found[name] = str(features.version(name))
    return found


def out_of_fold_logits(root: Path) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Return, by head and by path of a train or validation image, logits of shape (n_classes,)."""
    from headstart.features.feature_store import FeatureStore
    from headstart.heads.folds import assign_folds, folds_of
    from headstart.heads.trainer import HeadTrainer, mean_by_row
    from headstart.params.head import HeadConfig

    with FeatureStore(root / "data/features.h5") as store:
        chosen = np.sort(np.concatenate([store.indices("train"), store.indices("validation")]))
        batch = store.rows(chosen)
        n_classes, columns = len(store.classes), store.columns()
    trainer = HeadTrainer(batch.features, batch.label_ids, n_classes, columns, batch_size=16)
    folds = folds_of(assign_folds(batch.label_ids, batch.groups, folds=4, seed=0), [0])
    found = {}
    for name, fields in HEADS.items():
        config = HeadConfig(**fields)
        answer = trainer.cross_validate(config, folds, epochs=config.epochs)
        rows, logits = mean_by_row(folds, answer.logits)
        found[name] = {batch.paths[row]: one for row, one in zip(rows, logits, strict=True)}
    return found


def probabilities(root: Path) -> dict[str, NDArray[np.float64]]:
    """Return, by path of a test image, probabilities of shape (n_classes,)."""
    with (root / "reports/predictions.csv").open(encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["split"] == "test"]
    names = [name for name in rows[0] if name.startswith("p(")]
    return {row["path"]: np.array([float(row[name]) for name in names]) for row in rows}


@contextmanager
def golden_server(root: Path) -> Any:
    """Serve models/serving by the real server; yields a function from a file to probabilities."""
    port = free_port()
    command = [sys.executable, "-m", "headstart", "serve", "--model", "models/serving"]
    with (root / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)], cwd=root, env=_environment(), stderr=log, stdout=log
        )
    try:
        _wait_for(process, f"http://127.0.0.1:{port}/ping", root / "server.log")
        yield lambda path: _answer(f"http://127.0.0.1:{port}/invocations", path)
    finally:
        process.terminate()
        process.wait(30)


def _wait_for(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"the server did not answer:\n{log.read_text()}")


def _answer(url: str, path: Path) -> NDArray[np.float64]:
    image = base64.b64encode(path.read_bytes()).decode()
    body = json.dumps({"inputs": {"image": [image]}}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        row = json.load(response)["predictions"][0]
    return np.array([value for name, value in row.items() if name.startswith("p(")])


def _pixels(root: Path) -> dict[str, NDArray[np.uint8]]:
    with h5py.File(root / "data/images.h5") as file:
        keys = [value.decode() for value in file["sha256"][...]]
        return dict(zip(keys, file["images"][...], strict=True))


def _projections(root: Path, last: bool) -> dict[str, NDArray[np.float64]]:
    """Return, by sha256, a row of features on fixed directions: any change of it shows there.

    Args:
        last: of the last layer's block, or of all others.
    """
    with h5py.File(root / "data/features.h5") as file:
        keys = [value.decode() for value in file["sha256"][...]]
        blocks = file["features/efficientnet-lite0"]
        chosen = [name for name in sorted(blocks) if (name == "head_relu") == last]
        rows = np.concatenate([blocks[name][:, 0] for name in chosen], axis=1).astype(np.float64)
    directions = np.random.default_rng(0).normal(size=(rows.shape[1], N_PROJECTIONS))
    return dict(zip(keys, rows @ directions, strict=True))


def _rounded(values: NDArray[Any], digits: int) -> list[float]:
    return [round(float(value), digits) for value in values]


def _environment() -> dict[str, str]:
    dropped = ("MLFLOW_", "DVC_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return kept | {
        "PYTHONPATH": str(REPOSITORY / "src"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HEADSTART_DEBUG": "1",
    }
