"""Novelty: how well images of a class that a model does not know are told from the others.

    python -m bench.novelty [--quick]

Each class is left out in turn, in the features of all blocks of the default encoder. Silhouettes:
the default data against pictures 450–749 of each class, of which nothing was chosen. Photographs:
600 of the test assets, five splits of 85 to 15. *Less sure* is what one would use without it: one
minus the best probability of scikit-learn's logistic regression on the same features, trained
without the class. Then three pictures of another kind are given to the photographs.
"""

import argparse
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from bench.accuracy import ASSETS, ROOT, judging_pictures
from bench.common import Target, print_table, write_results
from bench.search_data import Case, features_of, resplit, unused_pictures
from headstart.common.paths import cache_folder
from headstart.encoders.runtimes import open_forward, resolve
from headstart.features.extractor import Extractor
from headstart.features.feature_store import FeatureBatch, FeatureStore
from headstart.heads.fitted import feature_statistics
from headstart.images.decode import decode_input
from headstart.models.novelty import NoveltyReference, fit_novelty
from headstart.params.extract import ExtractParams
from headstart.params.image import ImageParams

SILHOUETTES = str(ROOT / "data" / "sources" / "animal-silhouettes.yaml")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="one split, nothing written")
    quick = parser.parse_args().quick
    rows: list[list[object]] = []
    targets: list[Target] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        default = features_of(Case("default", "efficientnet-lite0", SILHOUETTES, {}), folder)
        unused = judging_pictures(default, features_of(unused_pictures(), folder))
        with FeatureStore(default) as store:
            blocks = list(store.columns().values())
            development = store.rows(np.arange(len(store)))
        report(rows, targets, "silhouettes", judge(development, unused, blocks))
        photos = ASSETS / "animals"
        if photos.is_dir():
            path = features_of(Case("photos", "efficientnet-lite0", str(photos), {}), folder)
            found: list[LeftOut] = []
            for seed in range(1 if quick else 5):
                split = resplit(path, folder / f"photos-{seed}.h5", seed, n_test=0.15)
                with FeatureStore(split) as store:
                    development = store.split("train", "validation")
                    found += judge(development, store.split("test"), blocks)
            report(rows, targets, "photographs", found)
            reference = fitted(development, blocks)
            silhouette = next(path for path in unused.paths if path.endswith((".png", ".jpg")))
            source = default.parent.parent.parent / "unused-efficientnet-lite0" / "data" / "fetched"
            for kind, data in (
                ("noise", noise()),
                ("a page of text", page()),
                ("a silhouette", (source / silhouette).read_bytes()),
            ):
                value = float(reference.novelty(features(data))[0])
                rows.append(["photographs", f"novelty of {kind}", round(value, 4), ""])
                targets.append(
                    Target(f"photographs: novelty of {kind}", value, "novelty", 0.95, ">=")
                )
    headers = ["data", "measured", "headstart", "less sure"]
    print_table(headers, rows)
    if not quick:
        write_results("novelty", targets, headers, rows)


def fitted(development: FeatureBatch, blocks: list[slice]) -> NoveltyReference:
    """What train keeps in the model file."""
    known = development.features[:, 0]
    mean, variance = feature_statistics(known, blocks)
    found = fit_novelty(known, development.label_ids, development.groups, mean, variance, seed=0)
    assert found is not None
    return found


@dataclass(frozen=True)
class LeftOut:
    """Of one class that nothing was fitted on: AUROCs, and how many images are caught."""

    auroc: float
    caught: float
    of_doubt: float


def judge(development: FeatureBatch, judges: FeatureBatch, blocks: list[slice]) -> list[LeftOut]:
    """Leave each class out of everything, and tell its images from the others."""
    seen = judges.features[:, 0]
    found = []
    for label in np.unique(development.label_ids):
        kept, own = development.label_ids != label, judges.label_ids == label
        known, labels = development.features[kept, 0], development.label_ids[kept]
        mean, variance = feature_statistics(known, blocks)
        groups = [g for g, is_kept in zip(development.groups, kept, strict=True) if is_kept]
        reference = fit_novelty(known, labels, groups, mean, variance, seed=0)
        assert reference is not None
        unusual = reference.without_class(-1, seen)  # without none
        limit = np.quantile(unusual[~own], 0.95)
        peer = LogisticRegression(max_iter=1000).fit(known, labels)
        doubt = 1 - peer.predict_proba(seen).max(axis=1)
        found.append(
            LeftOut(
                float(roc_auc_score(own, unusual)),
                float((unusual[own] > limit).mean()),
                float(roc_auc_score(own, doubt)),
            )
        )
    return found


def report(
    rows: list[list[object]], targets: list[Target], data: str, found: list[LeftOut]
) -> None:
    """Add lines of the table, and targets."""
    ours, theirs = [one.auroc for one in found], [one.of_doubt for one in found]
    mean = float(np.mean(ours))
    rows += [
        [data, "AUROC, mean of left-out classes", round(mean, 3), round(float(np.mean(theirs)), 3)],
        [data, "AUROC, worst", round(min(ours), 3), round(min(theirs), 3)],
        [data, "caught at 5 % false alarms", round(float(np.mean([o.caught for o in found])), 3),
         ""],
    ]  # fmt: skip
    name = f"{data}: AUROC of novelty, mean of left-out classes"
    targets.append(Target(name, mean, "AUROC", 0.88, ">="))


def features(data: bytes) -> NDArray[np.float32]:
    """All blocks of the default encoder for one image file."""
    image, extract = ImageParams(), resolve(ExtractParams())
    extractor = Extractor(extract, image, 0, Path.cwd(), cache_folder())
    forward = open_forward(extractor.frozen(), extract.runtime, extract.precision, cores=1)
    return forward(decode_input(data, image)[None])


def noise() -> bytes:
    """A photograph-sized image of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)
    return _png(Image.fromarray(pixels))


def page() -> bytes:
    """A page of text."""
    picture = Image.new("RGB", (620, 877), "white")
    draw = ImageDraw.Draw(picture)
    for line in range(40):
        draw.text((40, 40 + 20 * line), "Transfer learning on image folders. " * 2, fill="black")
    return _png(picture)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    main()
