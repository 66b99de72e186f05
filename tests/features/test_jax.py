"""The same extraction when Keras computes in JAX, on one device and split over several."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headstart.encoders.runtimes import open_forward
from headstart.params.extract import ExtractParams
from tests.features.samples import SIZE_PX, extractor, pixels, write_images

pytest.importorskip("jax")

DEFAULT: dict[str, Any] = {"runtime": "keras"}
# Few layers, because XLA takes long to compile many.
BEGINNING_OF_VGG16 = DEFAULT | {"encoders": "vgg16", "weights": "random", "layer": "block2_pool"}

CODE = f"""
import json, sys
from pathlib import Path
import jax, keras, numpy as np
from headstart.features import extractor as extractor_module
from headstart.features.extractor import extract_features
from headstart.encoders.runtimes import open_forward
from headstart.params.extract import ExtractParams
from tests.features.samples import extractor, manifest_of, pixels
folder, cache_root, precision = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
chosen = extractor(cache_root, ExtractParams(**json.loads(sys.argv[4]), precision=precision))
# Compiled once for everything below.
forward = open_forward(chosen.frozen(), "keras", precision, 1)
extractor_module.open_forward = lambda *_: forward
out = folder.parent
done = extract_features(chosen, manifest_of(folder), folder, out / "f.h5", out / "b.h5")
again = extract_features(chosen, manifest_of(folder), folder, out / "again.h5", out / "b.h5")
images = np.stack([pixels(number, {SIZE_PX}, {SIZE_PX}) for number in range(9)])
rows = forward(images)
np.save(out / "rows.npy", rows)
same = all((forward(images[a:b]) == rows[a:b]).all() for a, b in ((0, 1), (2, 7), (8, 9)))
print(json.dumps({{
    "backend": keras.backend.backend(), "devices": len(jax.devices()), "same": bool(same),
    "extracted": [done.n_extracted, again.n_extracted],
    "runtime": chosen.recipe()["runtime"],
    "bytes": (out / "f.h5").read_bytes() == (out / "again.h5").read_bytes(),
}}))
"""


@pytest.mark.parametrize(
    ("devices", "precision", "encoder"),
    [
        (2, "float32", BEGINNING_OF_VGG16),
        pytest.param(1, "float32", DEFAULT, marks=pytest.mark.slow),
        pytest.param(2, "float32", DEFAULT, marks=pytest.mark.slow),
        pytest.param(1, "bfloat16", DEFAULT, marks=pytest.mark.slow),
    ],
)
def test_extraction_under_jax(
    tmp_path: Path,
    cache_root: Path,
    repository: Path,
    devices: int,
    precision: str,
    encoder: dict[str, Any],
) -> None:
    folder = tmp_path / "images"
    write_images(folder, 11)
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"KERAS_BACKEND": "jax", "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    arguments = [str(folder), str(cache_root), precision, json.dumps(encoder)]
    command = [sys.executable, "-c", CODE, *arguments]
    answer = subprocess.run(
        command, cwd=repository, env=environment, check=True, capture_output=True, text=True
    )
    assert json.loads(answer.stdout.splitlines()[-1]) == {
        "backend": "jax",
        "devices": devices,
        "same": True,
        "extracted": [11, 0],
        "runtime": "keras-jax",
        "bytes": True,
    }
    reference = extractor(cache_root, ExtractParams(**encoder)).frozen()
    forward = open_forward(reference, "keras", "float32", cores=1)
    wanted = forward(np.stack([pixels(number, SIZE_PX, SIZE_PX) for number in range(9)]))
    found = np.load(tmp_path / "rows.npy")
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    assert ((found * wanted).sum(axis=1) / norms).min() > (
        0.99 if precision == "bfloat16" else 1 - 1e-6
    )
