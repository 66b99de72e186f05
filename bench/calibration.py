"""What temperature scaling does to the log loss of images held back: `python -m bench.calibration`.

On real cached features, over five splits a data set: the default head, as the train stage trains
it, on the train split alone and on train+validation, where the temperature comes from out-of-fold
predictions. Each is asked about test images with its temperature and without.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np

from bench.common import Target, print_table, write_results
from bench.search_data import cases, features_of, resplit
from headstart.features.feature_store import FeatureStore
from headstart.heads.config import BestHead, HeadConfig
from headstart.heads.metrics import scores, softmax
from headstart.params.train import TrainParams
from headstart.training.final_fit import train_model

SEEDS = 5
HEADERS = ["data", "trained on", "before", "after", "change", "worst split", "ECE before", "after"]
EPOCHS = 15


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one split, and no results")
    quick = parser.parse_args().quick
    rows: list[list[object]] = []
    targets: list[Target] = []
    with tempfile.TemporaryDirectory(prefix="headstart-bench-") as name:
        folder = Path(name)
        for case in cases():
            features = features_of(case, folder)
            for splits in ("train", "train+validation"):
                found = [
                    _measure(resplit(features, folder / "split.h5", seed, n_test=0.3), splits, seed)
                    for seed in range(1 if quick else SEEDS)
                ]
                before, after = ([one[i]["log_loss"] for one in found] for i in range(2))
                changes = [b - a for a, b in zip(before, after, strict=True)]
                ece = [statistics.fmean(one[i]["ece"] for one in found) for i in range(2)]
                change = statistics.fmean(changes)
                numbers = [statistics.fmean(before), statistics.fmean(after), change, max(changes)]
                rows.append([case.name, splits, *(round(number, 4) for number in (*numbers, *ece))])
                print_table(HEADERS, rows[-1:])
                what = f"log loss after scaling less that before, {case.name}, {splits}"
                targets.append(Target(what, change, "nats", 0.01, "<="))
    print_table(HEADERS, rows)
    if not quick:
        write_results("calibration", targets, HEADERS, rows)


def _measure(features: Path, splits: str, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """Test metrics without the temperature, and with it."""
    best = BestHead(
        config=HeadConfig(),
        epochs=EPOCHS,
        metric="accuracy",
        value=0.0,
        study="none",
        trial=0,
        batch_size=64,
    )
    with FeatureStore(features) as store:
        params = TrainParams.model_validate({"splits": splits})
        trained = train_model(store, best, params, seed=seed)
        test = store.split("test")
    logits = np.mean([head.logits(test.features[:, 0]) for head in trained.heads], axis=0)
    plain, scaled = (softmax(logits / t) for t in (1.0, trained.temperature))
    return scores(test.label_ids, plain), scores(test.label_ids, scaled)


if __name__ == "__main__":
    main()
