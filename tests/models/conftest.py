"""A small real encoder, heads of every kind upon it, and a workspace up to the train stage."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from headstart.common.paths import Project
from headstart.common.quiet import quiet_keras
from headstart.dataset.manifest import FLAGS, make_manifest, read_manifest, write_manifest
from headstart.dataset.pixel_store import pack
from headstart.features.feature_store import FeatureRows, write_features
from headstart.heads.config import BestHead, HeadConfig, write_head
from headstart.heads.fitted import DenseWeights, FittedHead
from headstart.images.decode import decode_input
from headstart.images.input_pixels import InputPixels
from headstart.models.model_file import LoadedModel, load_model, save_model
from headstart.models.pixels import predict_batch
from headstart.params.image import ImageParams
from headstart.params.pack import PackParams
from tests.conftest import REPOSITORY

FEATURE_DIM = 12
SIZE = 16


def compute_outputs(model: Any, paths: Sequence[Path], image: ImageParams) -> NDArray[np.float32]:
    """What Keras gives for image files."""
    pixels = np.stack([decode_input(path.read_bytes(), image) for path in paths])
    return predict_batch(model, pixels)


def saved(path: Path, model: Any, metadata: dict[str, Any]) -> LoadedModel:
    """A model by way of its file."""
    save_model(path, model, metadata)
    return load_model(path)


def make_encoder(seed: int = 0) -> Any:
    """Two convolutions with batch normalisation: uint8 (n, 16, 16, 3) to float32 (n, 12)."""
    import keras

    keras.utils.set_random_seed(seed)
    layers = keras.layers
    image = keras.Input((SIZE, SIZE, 3), dtype="uint8", name="image")
    values = layers.Rescaling(1 / 128, -1.0, name="preprocess_rescale")(image)
    for block in (1, 2):
        values = layers.Conv2D(FEATURE_DIM, 3, strides=2, name=f"block{block}_conv")(values)
        values = layers.BatchNormalization(name=f"block{block}_bn")(values)
        values = layers.ReLU(name=f"block{block}_relu")(values)
    features = layers.GlobalAveragePooling2D(name="features")(values)
    model = keras.Model(image, features, name="small")
    model.trainable = False
    return model


def make_head(seed: int = 0, n_classes: int = 3, **fields: Any) -> FittedHead:
    """A head with random weights, as if it had been trained."""
    config = HeadConfig(**{"width": 8, **fields})
    generator = np.random.default_rng(seed)
    widths = [FEATURE_DIM, *[config.width] * config.hidden_layers, n_classes]
    layers = tuple(
        DenseWeights(
            generator.normal(size=(n_in, n_out)).astype(np.float32),
            generator.normal(size=n_out).astype(np.float32),
        )
        for n_in, n_out in pairwise(widths)
    )
    standardised = config.normalisation == "standardise"
    return FittedHead(
        config=config,
        n_classes=n_classes,
        layers=layers,
        mean=np.linspace(-1, 1, FEATURE_DIM, dtype=np.float32) if standardised else None,
        variance=np.linspace(0.1, 2, FEATURE_DIM, dtype=np.float32) if standardised else None,
    )


def make_head_for(feature_dim: int, n_classes: int = 3) -> FittedHead:
    """A standardising linear head with random weights for features of any dimension."""
    generator = np.random.default_rng(0)
    kernel = generator.normal(0, 0.05, (feature_dim, n_classes)).astype(np.float32)
    return FittedHead(
        config=HeadConfig(hidden_layers=0),
        n_classes=n_classes,
        layers=(DenseWeights(kernel, np.zeros(n_classes, np.float32)),),
        mean=generator.random(feature_dim, dtype=np.float32),
        variance=generator.random(feature_dim, dtype=np.float32) + 0.1,
    )


CLASSES = ("blue", "green", "red", "yellow")
COLOURS = {"blue": (40, 60, 200), "green": (40, 190, 60), "red": (200, 50, 40)}
IMAGE = ImageParams(size=SIZE)
N_PER_CLASS = 60


def make_workspace(
    root: Path, classes: Sequence[str] = CLASSES, n_per_class: int = N_PER_CLASS
) -> Project:
    """A workspace as it is before train: images, manifest, features, encoder and best head.

    240 noisy coloured squares; yellow and red overlap, so that there are mistakes to look at.
    Classes of other names have a colour each, somewhere between the four.
    """
    project = Project(root)
    shutil.copy(REPOSITORY / "dvc.yaml", root)
    project.params.write_text("seed: 0\n")
    generator = np.random.default_rng(7)
    rows = [(name, number) for name in classes for number in range(n_per_class)]
    pixels = np.stack([_picture(name, generator) for name, _ in rows])
    paths = [f"{name}/{number:03d}.png" for name, number in rows]
    for path, picture in zip(paths, pixels, strict=True):
        file = project.fetched / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(file)
    sha256 = [hashlib.sha256((project.fetched / path).read_bytes()).hexdigest() for path in paths]
    splits = [("train", "train", "validation", "test")[number % 4] for _, number in rows]
    manifest = make_manifest(
        {
            "path": paths,
            "label": [name for name, _ in rows],
            "split_given": [False] * len(paths),
            "sha256": sha256,
            "size_bytes": [(project.fetched / path).stat().st_size for path in paths],
            "width": [SIZE] * len(rows),
            "height": [SIZE] * len(rows),
            "split": splits,
            "group": sha256,
            **{flag: [number % 5 == 0 for _, number in rows] for flag in FLAGS},
        }
    )
    write_manifest(project.manifest, manifest)
    encoder = make_encoder()
    project.encoder.parent.mkdir(parents=True)
    with quiet_keras():
        encoder.save(project.encoder, include_optimizer=False)
    features = encoder.predict(pixels, verbose=0)
    write_features(
        project.features,
        rows=FeatureRows(
            label_ids=manifest.label_ids,
            sha256=sha256,
            paths=paths,
            splits=splits,
            groups=manifest.groups,
        ),
        parts=[features[:, None]],
        n_views=1,
        encoder="small",
        blocks={"last": slice(0, FEATURE_DIM)},
        classes=classes,
        recipe={
            "backbone": "small",
            "weights": "random-1",
            "precision": "float32",
            "runtime": "keras-tensorflow",
        },
        fingerprint="f" * 64,
    )
    best = BestHead(
        config=HeadConfig(width=16, epochs=12, learning_rate=1e-2),
        epochs=8,
        metric="log_loss",
        value=0.5,
        study="study",
        batch_size=32,
        trial=0,
    )
    write_head(project.best_head, best)
    return project


def _picture(name: str, generator: np.random.Generator) -> np.ndarray:
    mixed = generator.random()
    yellow = 0.5 * np.array(COLOURS["red"]) + 0.5 * np.array((230, 210, 40)) * (0.6 + 0.4 * mixed)
    own = np.random.default_rng(list(name.encode())).uniform(40, 230, 3)
    colour = np.asarray(COLOURS.get(name, yellow if name in CLASSES else own))
    noisy = colour * generator.uniform(0.5, 1.2) + generator.normal(0, 45, (SIZE, SIZE, 3))
    return noisy.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def encoder() -> Any:
    """The small encoder."""
    return make_encoder()


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    """uint8, shape (20, 16, 16, 3)."""
    return np.random.default_rng(0).integers(0, 256, (20, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def head() -> Callable[..., FittedHead]:
    """Makes heads."""
    return make_head


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A workspace as it is before train; not to be written to."""
    return make_workspace(tmp_path_factory.mktemp("small"))


def pack_pixels(
    project: Project,
    path: Path | None = None,
    image: ImageParams = IMAGE,
    params: PackParams | None = None,
) -> None:
    """Write images.h5 of a workspace, or another file of its pixels."""
    kept = InputPixels(project.root / "none", project.fetched, image, max_pixels=10**8)
    manifest = read_manifest(project.manifest)
    pack(path or project.images, manifest, kept.read, image, params or PackParams())
