"""A small pyfunc model folder, and pictures to send to it."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from PIL import Image

from headstart.images.decode import decode_input
from headstart.models.assemble import assemble, features_model
from headstart.models.model_file import save_model
from headstart.models.novelty import fit_novelty
from headstart.serving.package import save_pyfunc
from tests.models.conftest import IMAGE, make_encoder, make_head

CLASSES = ["a", "b", "c"]


def png(seed: int, enlarged: int = 1) -> bytes:
    """A noisy picture of 12 × 12 pixels, each that many pixels wide and high, as a PNG file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.repeat(enlarged, 0).repeat(enlarged, 1)).save(buffer, format="PNG")
    return buffer.getvalue()


def base64_of(data: bytes) -> str:
    """As it is sent."""
    return base64.b64encode(data).decode()


def make_serving(folder: Path) -> Path:
    """Write a small model with novelty, and the folder that is served, as train and package do."""
    metadata = {"classes": CLASSES, "image": IMAGE.model_dump(mode="json"), "fine_tuned": None}
    model = assemble(make_encoder(), [make_head()], 1.0)
    pixels = np.stack([decode_input(png(seed), IMAGE) for seed in range(100, 160)])
    features = np.asarray(features_model(model)(pixels))
    novelty = fit_novelty(
        features,
        np.arange(60) % 3,
        [str(seed) for seed in range(60)],
        features.mean(axis=0),
        features.var(axis=0) + np.float32(1e-6),
        seed=0,
    )
    save_model(folder / "model.h5", model, metadata, novelty)
    save_pyfunc(folder / "serving", folder / "model.h5", CLASSES, png(0))
    return folder / "serving"


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that is served."""
    return make_serving(tmp_path_factory.mktemp("serving"))


@pytest.fixture(scope="module")
def model(serving: Path) -> Iterator[Any]:
    """The folder as `mlflow.pyfunc.load_model` loads it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_SCHEMA_DETAILS", "")
        patch.delenv("MLFLOW_DISABLE_SCHEMA_DETAILS")
        yield mlflow.pyfunc.load_model(str(serving))  # which sets it
