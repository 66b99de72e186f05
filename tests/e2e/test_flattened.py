"""VGG16's whole last feature map, flattened: 25,088 features an image, all the way in 2 GB."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from headstart.common.files import sha256_of_file
from tests.e2e.conftest import make_workspace
from tests.peak_memory import stage_command

pytestmark = pytest.mark.slow

MOST_BYTES = 2 * 10**9
STAGES = ("fetch", "ingest", "pack", "extract", "search", "train", "package", "evaluate")


@pytest.mark.timeout(1800)
def test_flattened_features_of_the_photos_end_to_end(tmp_path: Path, assets: Path) -> None:
    workspace = make_workspace(tmp_path / "headstart", tmp_path / "cache")
    weights = (assets / "weights/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5").resolve()
    path = workspace.root / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    params["data"]["source"] = str((assets / "animals").resolve())
    params["extract"] |= {
        "encoders": "vgg16",
        "pooling": "flatten",
        "weights": str(weights),
        "weights_sha256": sha256_of_file(weights),
    }
    path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    peaks = {}
    for stage in STAGES:
        said = workspace.run(*stage_command(sys.executable, stage))
        peaks[stage] = int(said.splitlines()[-1])
        print(stage, round(peaks[stage] / 1e6), "MB")
    assert max(peaks.values()) < MOST_BYTES, peaks
    metrics = json.loads((workspace.root / "reports/metrics.json").read_text(encoding="utf-8"))
    assert metrics["accuracy"] > 0.93
    contract = workspace.run("headstart", "inspect", "data/features.h5")
    assert "25,088" in contract or "25088" in contract
