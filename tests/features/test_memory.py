"""Extraction stays in memory where rows are large: VGG16's whole last feature map, flattened."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from headstart.dataset.manifest import write_manifest
from tests.features.samples import manifest_of, write_images
from tests.peak_memory import stage_command

N_IMAGES, SIZE_PX = 64, 224
MOST_BYTES = 2 * 10**9


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_flattened_vgg16_from_an_empty_cache(tmp_path: Path, own_cache: Path) -> None:
    assert list(own_cache.iterdir()) == []
    write_images(tmp_path / "data" / "fetched", N_IMAGES)
    manifest = manifest_of(tmp_path / "data" / "fetched")
    write_manifest(tmp_path / "data" / "manifest.csv", manifest)
    extract = {"encoders": "vgg16", "weights": "random", "pooling": "flatten"}
    params = {"image": {"size_px": SIZE_PX}, "extract": extract}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    done = subprocess.run(
        stage_command(sys.executable, "extract"),
        cwd=tmp_path,
        env=os.environ | {"KERAS_BACKEND": "tensorflow"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    line, peak = done.stdout.splitlines()
    assert f": {N_IMAGES} rows extracted" in line
    assert int(peak) < MOST_BYTES
    # A row has 7 × 7 × 512 numbers.
    assert (tmp_path / "data" / "features.h5").stat().st_size > N_IMAGES * 7 * 7 * 512 * 4
