"""The search: its time, its memory, and networks against an Optuna loop around Keras `fit`.

    python -m bench.search [--quick]

On real cached features: the default data and 600 photos of the test assets, the last map alone, of
EfficientNet-Lite0 (1,280 dimensions) and VGG16 (512); ridge and many classes on generated features.
Features come from the user's feature cache where it has them. What the search finds is measured by
`bench.accuracy`.
"""

import argparse
import itertools
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.common import Target, print_table, write_results
from bench.search_data import Case, cases, features_of, generated, last_block
from bench.search_logging import logging_seconds
from bench.search_peers import keras_loop, logistic_grid
from bench.search_processes import rss_after, seconds_and_memory, trials_per_second
from headstart.features.feature_store import FeatureStore
from headstart.heads.config import HeadConfig
from headstart.heads.folds import assign_folds, folds_of
from headstart.heads.trainer import HeadTrainer
from headstart.params.search import SearchParams
from headstart.params.search_space import DEFAULT_SPACE
from headstart.search.results import StudyResult
from headstart.search.search_heads import run_study

Row = list[object]
HEADERS = ["measured", "on", "how", "value", "unit"]
NETWORKS = {**DEFAULT_SPACE.model_dump(), "kind": "network", "layers": "all"}


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    trials: int
    keras_trials: dict[int, int]
    memory: tuple[int, int]
    worker_trials: int
    repetitions: int
    classes: tuple[tuple[int, int], ...]


FULL = Size(
    trials=32,
    keras_trials={1: 8, 5: 3},
    memory=(50, 500),
    worker_trials=192,
    repetitions=3,
    classes=((120, 40), (1000, 20)),
)
QUICK = Size(
    trials=4,
    keras_trials={1: 2, 5: 1},
    memory=(3, 6),
    worker_trials=4,
    repetitions=1,
    classes=((20, 10),),
)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run that writes no results")
    quick = parser.parse_args().quick
    size = QUICK if quick else FULL
    rows: list[Row] = []
    targets: list[Target] = []
    with tempfile.TemporaryDirectory(prefix="headstart-bench-") as name:
        folder = Path(name)
        chosen = [case for case in cases() if not quick or case.encoder == "efficientnet-lite0"]
        paths = [(case, features_of(case, folder)) for case in chosen]
        first = paths[0][1]
        _add(rows, targets, bench_default(first, folder, size))
        _add(rows, targets, bench_ridge(size))
        _add(rows, targets, bench_many_classes(folder, size))
        for case, path in paths:
            alone = last_block(path, folder / f"{path.parent.parent.name}-last.h5")
            for folds in (1, 5):
                _add(rows, targets, bench_networks(case, alone, folder, size, folds))
        _add(rows, targets, bench_logging(first, folder, size))
        _add(rows, targets, bench_processes(first, folder, size))
    print_table(HEADERS, rows)
    if not quick:
        write_results("search", targets, HEADERS, rows)


def bench_default(path: Path, folder: Path, size: Size) -> tuple[list[Row], list[Target]]:
    """The default search from an empty store, in a process that has not imported anything."""
    times = [
        seconds_and_memory(path, folder / f"default-{index}", SearchParams())[0]
        for index in range(size.repetitions)
    ]
    seconds = float(np.median(times))
    rows: list[Row] = [["the default search", "default", "headstart", round(seconds, 1), "s"]]
    return rows, [Target("the default search on the default data", seconds, "s", 20.0, "<=")]


def bench_ridge(size: Size) -> tuple[list[Row], list[Target]]:
    """All 31 sets of five blocks, each with five folds and every penalty of the path."""
    rows: list[Row] = []
    targets: list[Target] = []
    for n, dim, limit in ((1278, 1900, 5.0), (600, 25_088, 10.0)):
        chance = np.random.default_rng(0)
        label_ids = np.arange(n) % 10
        features = chance.standard_normal((n, 1, dim), np.float32)
        edges = np.linspace(0, dim, 6).astype(int)
        blocks = {f"b{i}": slice(a, b) for i, (a, b) in enumerate(itertools.pairwise(edges))}
        sets = ["+".join(some) for k in range(1, 6) for some in itertools.combinations(blocks, k)]
        keys = [str(row) for row in range(n)]
        folds = folds_of(assign_folds(label_ids, keys, folds=5, seed=0), [0])
        times = []
        for _ in range(size.repetitions):
            started = time.perf_counter()
            trainer = HeadTrainer(features, label_ids, 10, blocks)
            for layers in sets:
                config = HeadConfig(kind="ridge", layers=layers)
                trainer.cross_validate(config, folds, path=True)
            times.append((time.perf_counter() - started) * 25 / len(sets))
        seconds, on = float(np.median(times)), f"{n} rows of {dim:,}"
        rows.append(["25 sets of blocks, ridge, five folds", on, "headstart", seconds, "s"])
        targets.append(Target(f"25 sets of blocks with ridge, {on}", seconds, "s", limit, "<="))
    return rows, targets


def bench_many_classes(folder: Path, size: Size) -> tuple[list[Row], list[Target]]:
    """The default search where there are many classes, on generated features."""
    rows: list[Row] = []
    targets: list[Target] = []
    limits = {(120, 40): (90.0, None), (1000, 20): (600.0, 4.0)}
    for n_classes, each in size.classes:
        path = generated(folder / f"classes-{n_classes}.h5", n_classes, each)
        seconds, memory = seconds_and_memory(path, folder / f"many-{n_classes}", SearchParams())
        on = f"{n_classes:,} classes of {each}"
        rows += [
            ["the default search", on, "headstart", round(seconds, 1), "s"],
            ["its largest memory", on, "headstart", round(memory, 2), "GB"],
        ]
        most, most_memory = limits.get((n_classes, each), (None, None))
        if most:
            targets.append(Target(f"the default search, {on}", seconds, "s", most, "<="))
        if most_memory:
            targets.append(Target(f"its memory, {on}", memory, "GB", most_memory, "<="))
    return rows, targets


def bench_networks(
    case: Case, path: Path, folder: Path, size: Size, folds: int
) -> tuple[list[Row], list[Target]]:
    """Trials a second, of networks; the Keras loop trains the first of the same heads."""
    search = _params(size.trials, space=NETWORKS, folds=folds, default_head={"kind": "network"})
    result, seconds = _timed(path, search, folder / f"networks-{folds}" / case.name)
    heads = [trial.config for trial in result.trials if trial.config is not None]
    peer = keras_loop(path, search, seed=0, n_trials=size.keras_trials[folds], heads=heads)
    ours, theirs = len(result.trials) / seconds, peer.n_trials / peer.seconds
    with FeatureStore(path) as store:
        dim, n_rows = store.feature_dim, len(store.indices("train"))
    on = f"{case.data}, {n_rows} rows of {dim}, {'five folds' if folds > 1 else 'one split'}"
    rows: list[Row] = [
        ["trials a second", on, "headstart", round(ours, 3), "1/s"],
        ["trials a second", on, "Keras loop", round(theirs, 3), "1/s"],
        ["trials a second, ratio", on, "headstart / Keras loop", round(ours / theirs, 2), "×"],
    ]
    if folds == 1:
        grid = logistic_grid(path, search.metric)
        rows += [
            ["validation accuracy", on, f"headstart, {seconds:.1f} s", _short(result.best.value)],
            ["validation accuracy", on, f"GridSearchCV, {grid.seconds:.1f} s", _short(grid.best)],
        ]
    wanted = {(False, 1): 9.0, (True, 1): 15.0, (False, 5): 12.0, (True, 5): 20.0}
    how = "five folds" if folds > 1 else "one split"
    name = f"trials a second over the Keras loop's, {how}, {case.name}"
    target = Target(name, ours / theirs, "×", wanted[dim <= 512, folds], ">=")
    return [_padded(row) for row in rows], [target]


def bench_logging(path: Path, folder: Path, size: Size) -> tuple[list[Row], list[Target]]:
    """What logging the study and its trials to MLflow adds to the search."""
    search = _params(size.trials)
    result, seconds = _timed(path, search, folder / "logged")
    logging = logging_seconds(path, result, search, folder / "logging")
    on = f"default, {len(result.trials)} trials"
    rows: list[Row] = [
        ["the search", on, "headstart", round(seconds, 2), "s"],
        ["logging it to MLflow", on, "headstart, SQLite", round(logging, 2), "s"],
    ]
    share = logging / seconds
    return rows, [Target("MLflow logging beside the search", share, "fraction", 0.1, "<=")]


def bench_processes(path: Path, folder: Path, size: Size) -> tuple[list[Row], list[Target]]:
    """Memory over many trials, and two workers against one, each held to one core."""
    short = {**NETWORKS, "hidden_layers": {"choices": [0, 1]}, "width": 64, "epochs": 5}
    search = _params(size.memory[1] + 50, sampler="random", folds=1, space=short)
    before, after = rss_after(path, folder / "memory", search, size.memory)
    growth = after / before - 1
    speeds = {}
    wrong = 0
    for n_workers in (1, 2):
        search = _params(size.worker_trials, sampler="random", folds=1, space=NETWORKS)
        speeds[n_workers], lost = trials_per_second(
            path, folder / f"workers-{n_workers}", search, n_workers
        )
        wrong += lost
    ratio = speeds[2] / speeds[1]
    few, many = size.memory
    rows: list[Row] = [
        [f"memory after {few} trials", "default", "headstart", round(before), "MB"],
        [f"memory after {many} trials", "default", "headstart", round(after), "MB"],
        ["one worker on one core", "default", "headstart", round(speeds[1], 3), "1/s"],
        ["two workers on a core each", "default", "headstart", round(speeds[2], 3), "1/s"],
    ]
    return rows, [
        Target(f"growth of memory from {few} to {many} trials", growth, "fraction", 0.05, "<="),
        Target("two workers over one, each on one core", ratio, "×", 1.6, ">="),
        Target("trials lost or doubled by two workers", float(wrong), "trials", 0.0, "<="),
    ]


def _timed(
    path: Path, search: SearchParams, folder: Path, seed: int = 0
) -> tuple[StudyResult, float]:
    """A search from an empty study store, and its seconds, compiling included."""
    started = time.perf_counter()
    with FeatureStore(path) as store:
        result = run_study(store, search, seed=seed, storage_folder=folder)
    return result, time.perf_counter() - started


def _params(n_trials: int, **changes: Any) -> SearchParams:
    return SearchParams.model_validate({"n_trials": n_trials, "metric": "accuracy", **changes})


def _add(rows: list[Row], targets: list[Target], found: tuple[list[Row], list[Target]]) -> None:
    print_table(HEADERS, found[0])
    rows += found[0]
    targets += found[1]


def _padded(row: Row) -> Row:
    return [*row, *[""] * (len(HEADERS) - len(row))]


def _short(value: float | None) -> float:
    return round(value or 0.0, 4)


if __name__ == "__main__":
    main()
