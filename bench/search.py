"""The search against an Optuna loop around Keras `fit`, and against a grid of logistic regressions.

    python -m bench.search [--quick]

On real cached features: the default data and 600 photos of the test assets, with EfficientNet-Lite0
(1,280 dimensions) and VGG16 (512). Features come from the user's feature cache where it has them.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.common import Target, print_table, write_results
from bench.search_data import Case, cases, features_of, resplit, unused_pictures, unused_rows
from bench.search_logging import logging_seconds
from bench.search_peers import Predict, keras_loop, logistic_grid
from bench.search_processes import rss_after, trials_per_second
from headstart.features.feature_store import FeatureStore
from headstart.heads.fit import FitOptions, fit_head
from headstart.params.search import SearchParams
from headstart.params.search_space import DEFAULT_SPACE
from headstart.search.search_heads import StudyResult, run_study

Row = list[object]
HEADERS = ["measured", "on", "how", "value", "unit"]
NETWORKS = {**DEFAULT_SPACE.model_dump(), "kind": "network"}


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    trials: int
    keras_trials: int
    seeds: int
    memory: tuple[int, int]
    worker_trials: int


FULL = Size(trials=32, keras_trials=8, seeds=5, memory=(50, 500), worker_trials=192)
QUICK = Size(trials=4, keras_trials=2, seeds=1, memory=(3, 6), worker_trials=4)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run that writes no results")
    parser.add_argument("--no-quality", action="store_true", help="leave out the longest part")
    arguments = parser.parse_args()
    quick = arguments.quick
    size = QUICK if quick else FULL
    rows: list[Row] = []
    targets: list[Target] = []
    with tempfile.TemporaryDirectory(prefix="headstart-bench-") as name:
        folder = Path(name)
        chosen = [case for case in cases() if not quick or case.encoder == "efficientnet-lite0"]
        paths = [(case, features_of(case, folder)) for case in chosen]
        for case, path in paths:
            _add(rows, targets, bench_speed(case, path, folder, size))
        lite0 = [(case, path) for case, path in paths if case.encoder != "vgg16"]
        first = lite0[0][1]
        _add(rows, targets, bench_folds(first, folder, size))
        _add(rows, targets, bench_logging(first, folder, size))
        _add(rows, targets, bench_processes(first, folder, size))
        unused = None
        if not (quick or arguments.no_quality):
            unused = unused_rows(features_of(unused_pictures(), folder))
        for case, path in [] if arguments.no_quality else lite0:
            rest = unused if case.data == "default" else None
            _add(rows, targets, bench_quality(case, path, rest, folder, size))
    print_table(HEADERS, rows)
    if not quick:
        write_results("search", targets, HEADERS, rows)


def bench_speed(case: Case, path: Path, folder: Path, size: Size) -> tuple[list[Row], list[Target]]:
    """Trials a second, of networks; the Keras loop trains the first of the same heads."""
    search = _params(size.trials, space=NETWORKS)
    result, seconds = _timed(path, search, folder / "speed" / case.name)
    heads = [trial.config for trial in result.trials if trial.config is not None]
    peer = keras_loop(path, search, seed=0, n_trials=size.keras_trials, heads=heads)
    ours, theirs = len(result.trials) / seconds, peer.n_trials / peer.seconds
    grid = logistic_grid(path, search.metric)
    with FeatureStore(path) as store:
        dim, n_rows = store.feature_dim, len(store.indices("train"))
    on = f"{case.data}, {n_rows} rows of {dim}"
    rows: list[Row] = [
        ["trials a second", on, "headstart", round(ours, 3), "1/s"],
        ["trials a second", on, "Keras loop", round(theirs, 3), "1/s"],
        ["trials a second, ratio", on, "headstart / Keras loop", round(ours / theirs, 2), "×"],
        ["best validation accuracy", on, f"headstart, {seconds:.1f} s", _short(result.best.value)],
        ["best validation accuracy", on, f"GridSearchCV, {grid.seconds:.1f} s", _short(grid.best)],
    ]
    wanted = 10.0 if dim <= 512 else 6.0
    name = f"trials a second over the Keras loop's, {case.name}"
    return [_padded(row) for row in rows], [Target(name, ours / theirs, "×", wanted, ">=")]


def bench_folds(path: Path, folder: Path, size: Size) -> tuple[list[Row], list[Target]]:
    """What a trial and an epoch cost with five folds, of those without."""
    a_trial, an_epoch = {}, {}
    for folds in (1, 5):
        search = _params(size.trials, sampler="random", folds=folds, space=NETWORKS)
        result, total = _timed(path, search, folder / f"folds-{folds}")
        epochs = sum(len(trial.curve["log_loss"]) for trial in result.trials)
        a_trial[folds], an_epoch[folds] = total / len(result.trials), total / epochs
    ratios = {"trial": a_trial[5] / a_trial[1], "epoch": an_epoch[5] / an_epoch[1]}
    rows: list[Row] = [
        ["cost of five folds", f"default, {name} by {name}", "headstart", round(ratio, 2), "×"]
        for name, ratio in ratios.items()
    ]
    return rows, [
        Target(f"cost of {article} {name} with 5 folds over one without", ratio, "×", 5.0, "<=")
        for article, (name, ratio) in zip(("a", "an"), ratios.items(), strict=True)
    ]


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
    search = _params(size.memory[1] + 50, sampler="random")
    before, after = rss_after(path, folder / "memory", search, size.memory)
    growth = after / before - 1
    speeds = {}
    wrong = 0
    for n_workers in (1, 2):
        search = _params(size.worker_trials, sampler="random", space=NETWORKS)
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


def bench_quality(
    case: Case,
    path: Path,
    unused: tuple[NDArray[np.float32], NDArray[np.int64]] | None,
    folder: Path,
    size: Size,
) -> tuple[list[Row], list[Target]]:
    """Test accuracy of what each finds in the same time, over seeds of splits."""
    found: dict[str, list[float]] = {"headstart": [], "5 folds": [], "Keras loop": [], "grid": []}
    for seed in range(size.seeds):
        split = folder / f"{case.data}-{seed}.h5"
        resplit(path, split, seed, n_test=0.0 if unused is not None else 0.3)
        rows, labels = unused if unused is not None else _test_rows(split)
        base = folder / "quality" / f"{case.data}-{seed}"
        single, seconds = _timed(split, _params(size.trials), base / "single", seed)
        folds, _ = _timed(split, _params(size.trials, folds=5), base / "folds", seed)
        peer = keras_loop(split, _params(size.trials), seed=seed, timeout_s=seconds)
        grid = logistic_grid(split, _params(1).metric)
        chosen = {
            "headstart": _predictor(split, single, seed),
            "5 folds": _predictor(split, folds, seed),
            "Keras loop": peer.predict,
            "grid": grid.predict,
        }
        for name, predict in chosen.items():
            found[name].append(float((predict(rows).argmax(axis=1) == labels).mean()))
    rows_out: list[Row] = [
        ["mean test accuracy", case.name, f"{name} (± {_error(v):.4f})", _mean(v), "fraction"]
        for name, v in found.items()
    ]
    # Of the same seeds, so that what makes a split easy for all of them cancels out.
    pairs = {
        "headstart over the Keras loop": _differences(found["headstart"], found["Keras loop"]),
        "headstart over the grid": _differences(found["headstart"], found["grid"]),
        "5 folds over single split": _differences(found["5 folds"], found["headstart"]),
    }
    rows_out += [
        ["paired difference", case.name, f"{name} (± {_error(v):.4f})", _mean(v), "fraction"]
        for name, v in pairs.items()
    ]
    return rows_out, [
        Target(f"test accuracy, {name}, {case.name}", statistics.fmean(v), "fraction", -0.003, ">=")
        for name, v in pairs.items()
    ]


def _differences(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [one - other for one, other in zip(ours, theirs, strict=True)]


def _predictor(path: Path, result: StudyResult, seed: int) -> Predict:
    """The winner trained on the train split, stopped on validation."""
    best = result.best_head()
    with FeatureStore(path) as store:
        options = FitOptions(
            batch_size=best.batch_size,
            patience=8,
            metric=best.metric,
            first_epoch=best.first_epoch,
        )
        head = fit_head(
            best.config,
            store.split("train"),
            store.split("validation"),
            n_classes=len(store.classes),
            seed=seed,
            options=options,
        )
    return head.probabilities


def _test_rows(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    with FeatureStore(path) as store:
        batch = store.split("test")
    return batch.features[:, 0], batch.label_ids


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


def _mean(values: Sequence[float]) -> float:
    return round(statistics.fmean(values), 4)


def _error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
