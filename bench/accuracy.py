"""Accuracy of the default search on pictures that nothing was tuned on, beside scikit-learn.

    python -m bench.accuracy [--quick]

Silhouettes: of each class pictures 0–149 are the default data, whose train and validation splits a
plain run develops on; 450–749 judge, less those that are copies of the default data's. Blocks,
penalties and the space were chosen on 150–449. Photographs: 600 of the test assets, judged on their
test split. Differences are paired by picture; the interval is over pictures, of which each has the
mean over five split seeds. *Logistic regression* is scikit-learn's with its defaults, on the
average-pooled last map of the same development images. *Lite0 and Lite2 together* is
`extract.encoders: [efficientnet-lite0, efficientnet-lite2]`, all else as by default.
"""

import argparse
import os
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from bench.common import Target, print_table, write_results
from bench.search_data import Case, features_of, resplit, rewrite, unused_pictures
from headstart.features.feature_store import FeatureBatch, FeatureStore
from headstart.heads.config import describe_layers
from headstart.heads.folds import assign_folds, count_folds
from headstart.heads.metrics import softmax
from headstart.params.search import SearchParams
from headstart.params.search_space import DEFAULT_SPACE
from headstart.params.train import TrainParams
from headstart.search.search_heads import run_study
from headstart.training.final_fit import train_model

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("HEADSTART_TEST_ASSETS") or ROOT.parent / "shared" / "assets")
SEEDS = range(5)
PAIR = {"encoders": ["efficientnet-lite0", "efficientnet-lite2"]}
FEW, N_DRAWS = (5, 10, 20), 10
# As the search was before there were blocks: 32 heads of networks and logistic regression, on the
# last map, judged on the validation split.
BEFORE: dict[str, Any] = {
    "folds": 1,
    "default_head": {"kind": "network"},
    "space": {
        **DEFAULT_SPACE.model_dump(),
        "kind": {"choices": ["network", "logistic_regression"]},
        "layers": "all",
    },
}


@dataclass(frozen=True)
class Judged:
    """Of one seed: which pictures each got right, their losses, and what was expected.

    Attributes:
        gap: estimate minus accuracy of the winner, less the same of logistic regression.
    """

    right: NDArray[np.float64]
    losses: NDArray[np.float64]
    theirs_right: NDArray[np.float64]
    theirs_losses: NDArray[np.float64]
    gap: float
    seconds: float
    head: str


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="one seed, nothing written")
    quick = parser.parse_args().quick
    seeds = SEEDS[:1] if quick else SEEDS
    rows: list[list[object]] = []
    targets: list[Target] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        silhouettes = str(ROOT / "data" / "sources" / "animal-silhouettes.yaml")
        default = features_of(Case("default", "efficientnet-lite0", silhouettes, {}), folder)
        unused = judging_pictures(default, features_of(unused_pictures(), folder))
        print(f"{len(unused)} unused silhouettes", flush=True)
        found = [judge(default, seed, unused, {}, folder) for seed in seeds]
        gain, error = paired([j.right - j.theirs_right for j in found])
        rows.append(row("silhouettes, unused", found))
        saved, _ = paired([j.theirs_losses - j.losses for j in found])
        name = "silhouettes: points over logistic regression"
        targets += [
            Target(name, 100 * gain, "points", 0.8, ">="),
            Target(f"{name}, low end of 95 %", 100 * (gain - 1.96 * error), "points", 0.3, ">="),
            Target("silhouettes: log loss saved", saved, "nats", 0.0, ">="),
            Target(
                "estimate less accuracy, beyond that of one logistic regression",
                abs(100 * float(np.mean([j.gap for j in found]))), "points", 0.5, "<=",
            ),
        ]  # fmt: skip
        pair = features_of(Case("default", "pair", silhouettes, PAIR), folder)
        unused_pair = judging_pictures(pair, features_of(unused_pictures("pair", PAIR), folder))
        two = [judge(pair, seed, unused_pair, {}, folder) for seed in seeds]
        rows.append(row("silhouettes, unused: Lite0 and Lite2 together", two))
        gain, error = paired([a.right - b.right for a, b in zip(two, found, strict=True)])
        name = "two encoders: points over the default"
        targets += [
            Target(name, 100 * gain, "points", 0.4, ">="),
            Target(f"{name}, low end of 95 %", 100 * (gain - 1.96 * error), "points", 0.0, ">="),
        ]
        before = [judge(default, seed, unused, BEFORE, folder) for seed in seeds]
        rows.append(row("silhouettes, unused: heads on the last map, one split", before))
        for n in FEW if not quick else FEW[:1]:
            draws = [few(default, n, draw, unused, folder) for draw in range(N_DRAWS)]
            rows.append(row(f"silhouettes, {n} images per class", draws))
            each = [float((j.right - j.theirs_right).mean()) for j in draws]
            error = float(np.std(each, ddof=1) / np.sqrt(len(each)))
            targets.append(
                Target(
                    f"{n} images per class: standard errors over logistic regression",
                    float(np.mean(each)) / max(error, 1e-9), "errors", -1.0, ">=",
                )
            )  # fmt: skip
        photos = ASSETS / "animals"
        if photos.is_dir():
            path = features_of(Case("photos", "efficientnet-lite0", str(photos), {}), folder)
            found = [judge(path, seed, None, {}, folder) for seed in seeds]
            rows.append(row("600 photographs, test split", found))
            every = np.concatenate([j.right - j.theirs_right for j in found])
            error = float(every.std(ddof=1) / np.sqrt(len(every)))
            targets.append(
                Target(
                    "photographs: standard errors over logistic regression",
                    float(every.mean()) / max(error, 1e-9), "errors", -1.0, ">=",
                )
            )  # fmt: skip
    headers = [
        "data", "accuracy", "± sd", "log loss", "logistic regression", "± sd", "its log loss",
        "points gained", "± error", "search and train s", "heads chosen",
    ]  # fmt: skip
    print_table(headers, rows)
    if not quick:
        write_results("accuracy", targets, headers, rows)


def judging_pictures(default: Path, rest: Path) -> FeatureBatch:
    """Pictures 450–749 of each class that are no copies of the default data's."""
    with FeatureStore(default) as store:
        seen = set(store.sha256)
    with FeatureStore(rest) as store:
        numbers = [int(re.findall(r"(\d+)\.\w+$", path)[0]) % 1000 for path in store.paths]
        chosen = [
            row
            for row, (number, sha256) in enumerate(zip(numbers, store.sha256, strict=True))
            if 450 <= number < 750 and sha256 not in seen
        ]
        return store.rows(np.array(chosen))


def judge(
    path: Path, seed: int, unused: FeatureBatch | None, search: dict[str, Any], folder: Path
) -> Judged:
    """Search and train on another split of the same rows; judge on unused or test pictures."""
    split = resplit(path, folder / f"{path.parent.parent.name}-{seed}.h5", seed, n_test=0.15)
    return judge_split(split, seed, unused, search, folder / f"studies-{len(search)}-{split.stem}")


def judge_split(
    split: Path, seed: int, unused: FeatureBatch | None, search: dict[str, Any], studies: Path
) -> Judged:
    """Search and train on the development images of a features.h5, and judge."""
    with FeatureStore(split) as store:
        columns = store.columns()
        last = columns[store.layers[0]]  # of several encoders, of the first
        development = store.split("train", "validation")
        judges = unused or store.split("test")
        started = time.perf_counter()
        if search:
            # The last map alone, as before there were blocks.
            target = split.with_suffix(".last.h5")
            rewrite(store, target, np.arange(len(store)), list(store.splits), store.layers[:1])
            store = FeatureStore(target)
        params = SearchParams.model_validate(search)
        result = run_study(store, params, seed=seed, storage_folder=studies)
        options = TrainParams(combine="ensemble" if search else "trials")
        trained = train_model(store, result.best_head(), options, seed=seed)
        seconds = time.perf_counter() - started
    taken = np.concatenate([np.arange(s.start, s.stop) for n, s in columns.items()
                            if n in trained.layers])  # fmt: skip
    seen = judges.features[:, 0, taken]
    logits = np.mean([head.logits(seen) for head in trained.heads], axis=0)
    ours = softmax(logits / trained.temperature)
    design, labels = development.features[:, 0, last], development.label_ids
    peer = LogisticRegression(max_iter=1000).fit(design, labels)
    theirs = peer.predict_proba(judges.features[:, 0, last])
    right = (ours.argmax(axis=1) == judges.label_ids).astype(np.float64)
    theirs_right = (theirs.argmax(axis=1) == judges.label_ids).astype(np.float64)
    folds = count_folds(labels, development.groups, 5)
    fold = assign_folds(labels, development.groups, folds=folds, seed=seed)
    out_of_fold = [
        LogisticRegression(max_iter=1000)
        .fit(design[fold != k], labels[fold != k])
        .predict(design[fold == k])
        == labels[fold == k]
        for k in range(folds)
    ]
    expected = result.estimate if result.estimate is not None else result.best.value or 0.0
    if trained.members and result.ensemble is not None:
        expected = result.ensemble.estimate
    gap = (expected - right.mean()) - (np.concatenate(out_of_fold).mean() - theirs_right.mean())
    best = result.best.config
    return Judged(
        right,
        -np.log(np.maximum(ours[np.arange(len(ours)), judges.label_ids], 1e-7)),
        theirs_right,
        -np.log(np.maximum(theirs[np.arange(len(theirs)), judges.label_ids], 1e-7)),
        float(gap),
        seconds,
        f"{len(trained.members)} heads"
        if trained.members
        else f"{best.kind} on {describe_layers(best.layers)}"
        if best
        else "",
    )


def few(path: Path, n: int, draw: int, unused: FeatureBatch, folder: Path) -> Judged:
    """Search and train on so many groups of each class, drawn anew; none is left for a test."""
    target = folder / f"few-{n}-{draw}.h5"
    with FeatureStore(path) as store:
        chance = np.random.default_rng([n, draw])
        chosen: list[int] = []
        for label in range(len(store.classes)):
            mine = np.flatnonzero(store.label_ids == label)
            first = np.unique(np.array(store.groups)[mine], return_index=True)[1]
            chosen += sorted(mine[chance.permutation(first)[:n]].tolist())
        splits = ["validation" if i % n == 0 else "train" for i in range(len(chosen))]
        rewrite(store, target, np.array(chosen), splits)
    return judge_split(target, draw, unused, {}, folder / f"studies-few-{n}-{draw}")


def paired(differences: list[NDArray[np.float64]]) -> tuple[float, float]:
    """Mean and standard error over pictures, each of which has the mean over seeds."""
    each = np.mean(differences, axis=0)
    return float(each.mean()), float(each.std(ddof=1) / np.sqrt(len(each)))


def row(name: str, found: list[Judged]) -> list[object]:
    """One line of the table."""
    ours, theirs = (
        [float(getattr(j, of).mean()) for j in found] for of in ("right", "theirs_right")
    )
    each = [j.right.mean() - j.theirs_right.mean() for j in found]
    every = np.concatenate([j.right - j.theirs_right for j in found])
    gain, error = float(np.mean(each)), float(every.std(ddof=1) / np.sqrt(len(every)))
    if len({len(j.right) for j in found}) == 1 and len(found) > 1:
        gain, error = paired([j.right - j.theirs_right for j in found])
    heads = sorted({j.head for j in found})
    return [
        name, round(float(np.mean(ours)), 4), _sd(ours),
        round(float(np.mean([j.losses.mean() for j in found])), 4),
        round(float(np.mean(theirs)), 4), _sd(theirs),
        round(float(np.mean([j.theirs_losses.mean() for j in found])), 4),
        round(100 * gain, 2), round(100 * error, 2),
        round(float(np.median([j.seconds for j in found])), 1),
        "; ".join(heads[:3]) + (" …" if len(heads) > 3 else ""),
    ]  # fmt: skip


def _sd(values: list[float]) -> float:
    return round(float(np.std(values, ddof=1)), 4) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
