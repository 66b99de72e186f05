"""Real cached features for `bench.search`, made by the project's own stages."""

import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from headstart.common.files import sha256_of_file
from headstart.features.feature_store import FeatureRows, FeatureStore, write_features

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("HEADSTART_TEST_ASSETS") or ROOT.parent / "shared" / "assets")
VGG16 = ASSETS / "weights" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"


@dataclass(frozen=True)
class Case:
    """A data set with an encoder."""

    data: str
    encoder: str
    source: str
    overrides: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.data}, {self.encoder}"


def cases() -> list[Case]:
    """Those whose data and weights are here."""
    silhouettes = str(ROOT / "data" / "sources" / "animal-silhouettes.yaml")
    sources = [("default", silhouettes)]
    if (ASSETS / "animals").is_dir():
        sources.append(("animals", str((ASSETS / "animals").resolve())))
    found = [Case(data, "efficientnet-lite0", source, {}) for data, source in sources]
    if VGG16.is_file():
        vgg16 = {
            "encoders": "vgg16",
            "weights": str(VGG16.resolve()),
            "weights_sha256": sha256_of_file(VGG16),
        }
        found += [Case(data, "vgg16", source, vgg16) for data, source in sources]
    return found


def unused_pictures(
    encoder: str = "efficientnet-lite0", overrides: dict[str, Any] | None = None
) -> Case:
    """Pictures of the default data's package that the default data leaves out."""
    source = str(ROOT / "data" / "sources" / "animal-silhouettes-rest.yaml")
    return Case("unused", encoder, source, overrides or {})


def features_of(case: Case, folder: Path) -> Path:
    """features.h5 of a case; rows that the user's feature cache has are not extracted again."""
    workspace = folder / case.name.replace(", ", "-")
    path = workspace / "data" / "features.h5"
    if path.exists():
        return path
    workspace.mkdir(parents=True, exist_ok=True)
    (workspace / "dvc.yaml").touch()
    params = {"seed": 0, "data": {"source": case.source}, "extract": case.overrides}
    (workspace / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    for stage in ("fetch", "ingest", "extract"):
        command = [sys.executable, "-m", f"headstart.stages.{stage}"]
        subprocess.run(command, cwd=workspace, check=True)
    return path


def resplit(path: Path, target: Path, seed: int, *, n_test: float) -> Path:
    """The same rows under another split, a fraction for testing, a sixth of the rest to validate.

    Groups stay together; which group goes where is drawn from `seed`.
    """
    with FeatureStore(path) as store:
        chance = np.random.default_rng(seed)
        names = sorted(set(store.groups))
        place = dict(zip(names, chance.random(len(names)), strict=True))
        validation = n_test + (1 - n_test) / 6
        splits = [
            "test" if place[g] < n_test else "validation" if place[g] < validation else "train"
            for g in store.groups
        ]
        rewrite(store, target, np.arange(len(store)), splits)
    return target


def last_block(path: Path, target: Path) -> Path:
    """The same rows with the encoder's last map alone."""
    with FeatureStore(path) as store:
        rows = np.arange(len(store))
        splits = [store.splits[row] for row in rows.tolist()]
        rewrite(store, target, rows, splits, store.layers[:1])
    return target


def generated(path: Path, n_classes: int, each: int, dim: int = 1904) -> Path:
    """Features of so many classes that overlap a little, in four blocks."""
    chance = np.random.default_rng(0)
    n = n_classes * each
    label_ids = np.arange(n) % n_classes
    centres = chance.standard_normal((n_classes, dim), np.float32) * 0.3
    features = centres[label_ids] + chance.standard_normal((n, dim), np.float32)
    names = [f"{row:064x}" for row in range(n)]
    edges = np.linspace(0, dim, 5).astype(int)
    splits = ["validation" if row % 7 == 0 else "train" for row in range(n)]
    write_features(
        path,
        rows=FeatureRows(label_ids, names, names, splits, names),
        parts=[features[:, None]],
        n_views=1,
        encoder="generated",
        blocks={f"b{i}": slice(a, b) for i, (a, b) in enumerate(itertools.pairwise(edges))},
        classes=[f"class-{label:04}" for label in range(n_classes)],
        recipe={"backbone": "generated"},
        fingerprint="0" * 64,
    )
    return path


def rewrite(
    store: FeatureStore,
    target: Path,
    rows: NDArray[np.int64],
    splits: Sequence[str],
    layers: Sequence[str] | None = None,
) -> None:
    """Write some rows of a store, and some of its blocks, under other splits."""
    batch = store.rows(rows, layers)
    write_features(
        target,
        rows=FeatureRows(batch.label_ids, batch.sha256, batch.paths, splits, batch.groups),
        parts=[batch.features],
        n_views=store.n_views,
        encoder=store.recipe["backbone"],
        blocks=store.columns(layers),
        classes=store.classes,
        recipe=store.recipe,
        fingerprint=store.fingerprint,
    )
