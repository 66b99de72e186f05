"""Which run is best, by how much, why, and how to adopt it: `headstart leaderboard`."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.entities import Run as MlflowRun

from headstart.common.errors import TrackingError
from headstart.common.paths import Project
from headstart.common.terminal import printable
from headstart.evaluation.comparison import Comparison
from headstart.tracking.compare_runs import artifact_table
from headstart.tracking.registration import PREDICTIONS, compare_predictions
from headstart.tracking.store import TrackingStore, answering, open_store

_IS_MODEL = "tags.`headstart.kind` = 'model' AND attributes.status = 'FINISHED'"
# Params that change no result of a run that ended.
_NO_DIFFERENCE = ("search.storage", "search.workers", "extract.batch_size")


@dataclass(frozen=True)
class RankedRun:
    """One run.

    Attributes:
        accuracy, log_loss: on development images, out of fold.
        test: accuracy on the test split with its 95 % interval, or None.
        beside_best: accuracy less the best run's on the images of both, with its 95 % interval,
            and whether that is better, worse or undecided; None for the best itself and where too
            few images are common.
        differs: param → its value, where it is not the baseline's.
        adopt: the command that makes it the one that counts; empty where there is none.
    """

    run_id: str
    name: str
    accuracy: float
    log_loss: float
    test: tuple[float, float, float] | None
    beside_best: tuple[float, float, float, str] | None
    differs: dict[str, str]
    adopt: str


@dataclass(frozen=True)
class Leaderboard:
    """Runs by out-of-fold accuracy, then log loss, the best first."""

    baseline: str
    standings: list[RankedRun]

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def as_text(self) -> str:
        """Three lines a run, of 80 columns where names are short."""
        lines = ["   run       out of fold  log loss  test (95 % interval)    vs. the best"]
        for place, run in enumerate(self.standings, start=1):
            test = ""
            if run.test is not None:
                value, low, high = (f"{100 * one:.1f}" for one in run.test)
                test = f"{value} % ({low} to {high})"
            beside = "" if place > 1 else "best"
            if run.beside_best is not None:
                value, low, high = (f"{100 * one:+.1f}" for one in run.beside_best[:3])
                beside = f"{run.beside_best[3]}: {value} ({low} to {high})"
            lines.append(
                f"{place:>2} {run.run_id[:8]}  {100 * run.accuracy:>9.1f} %  {run.log_loss:>8.3f}  "
                f"{test:<22}  {beside}".rstrip()
            )
            lines.append(f"   {printable(run.name)}")
            changed = [f"{name}={printable(value)}" for name, value in run.differs.items()]
            if run.run_id == self.baseline:
                changed = ["the baseline"]
            lines.append(f"   {', '.join(changed) or 'as the baseline'}")
            if run.adopt:
                lines.append(f"   {run.adopt}")
        return "\n".join(lines)


def rank_runs(
    project: Project, *, baseline: str | None = None, most: int = 20, seed: int = 0
) -> Leaderboard:
    """Rank the trained models of the project's experiment.

    Runs are compared with the best on the development images that both have, each predicted by
    heads that had not seen it.

    Args:
        baseline: a run's id or its first characters, whose params the others are told by; by
            default the oldest run.
        most: runs that are shown.

    Raises:
        TrackingError: there is no such run, or no trained model yet.
    """
    store = open_store(project.root)
    runs = _trained_runs(store)
    if not runs:
        raise TrackingError(
            "a leaderboard needs runs of trained models, but the experiment "
            f"{store.experiment_name} has none that ended: run `dvc repro`"
        )
    reference = min(runs, key=lambda run: run.info.start_time)
    if baseline is not None:
        found = [run for run in runs if run.info.run_id.startswith(baseline)]
        if len(found) != 1:
            raise TrackingError(
                f"--baseline must be the id of one run, or how it begins, but {baseline} is of "
                f"{len(found)}: take one of {', '.join(run.info.run_id[:8] for run in runs[:5])}"
            )
        (reference,) = found
    runs.sort(key=lambda run: (-_figure(run, "val_accuracy"), _figure(run, "val_log_loss")))
    tables = [_predictions(store, run) for run in runs[:most]]
    standings = []
    for run, table in zip(runs, tables, strict=False):
        compared = None
        if run is not runs[0] and table is not None and tables[0] is not None:
            compared = compare_predictions(tables[0], table, "validation", seed, {})
        standings.append(_standing(run, reference, compared))
    return Leaderboard(reference.info.run_id, standings)


def _trained_runs(store: TrackingStore) -> list[MlflowRun]:
    found: list[MlflowRun] = []
    token = None
    with answering(store.uri):
        while True:
            page = store.client.search_runs(
                [store.experiment_id], _IS_MODEL, max_results=1000, page_token=token
            )
            found += [run for run in page if "val_accuracy" in run.data.metrics]
            token = page.token
            if not token:
                return found


def _predictions(store: TrackingStore, run: MlflowRun) -> pd.DataFrame | None:
    with tempfile.TemporaryDirectory() as folder:
        return artifact_table(store, run.info.run_id, PREDICTIONS, Path(folder))


def _standing(run: MlflowRun, reference: MlflowRun, compared: Comparison | None) -> RankedRun:
    metrics, tags = run.data.metrics, run.data.tags
    names = ("test_accuracy", "test_accuracy_ci95_low", "test_accuracy_ci95_high")
    test = [metrics[name] for name in names if name in metrics]
    adopt = ""
    if experiment := tags.get("dvc.exp_name"):
        adopt = f"dvc exp apply {experiment}"
    elif version := tags.get("registered.version"):
        adopt = f"headstart promote {version}"
    return RankedRun(
        run_id=run.info.run_id,
        name=str(run.info.run_name),
        accuracy=_figure(run, "val_accuracy"),
        log_loss=_figure(run, "val_log_loss"),
        test=(test[0], test[1], test[2]) if len(test) == len(names) else None,
        beside_best=None
        if compared is None
        else (
            compared.accuracy.value, compared.accuracy.low, compared.accuracy.high, compared.verdict
        ),
        differs=_differing(run.data.params, reference.data.params),
        adopt=adopt,
    )  # fmt: skip


def _differing(own: Mapping[str, str], reference: Mapping[str, str]) -> dict[str, str]:
    names: Sequence[str] = sorted(own.keys() | reference.keys())
    return {
        name: own.get(name, "none")
        for name in names
        if own.get(name) != reference.get(name) and name not in _NO_DIFFERENCE
    }


def _figure(run: MlflowRun, name: str) -> float:
    return float(run.data.metrics.get(name, float("nan")))
