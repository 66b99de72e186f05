"""Which run is best, by how much, why, and how to adopt it: `headstart leaderboard`."""

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from textwrap import wrap
from typing import Any

import pandas as pd
from mlflow.entities import Run as MlflowRun

from headstart.common.errors import TrackingError
from headstart.common.paths import Project
from headstart.common.terminal import printable
from headstart.evaluation.comparison import Comparison
from headstart.heads.config import describe_layers
from headstart.tracking.compare_runs import artifact_table
from headstart.tracking.dvc_experiments import experiment_names
from headstart.tracking.named_runs import named_run, trained_runs
from headstart.tracking.registration import PREDICTIONS, compare_predictions
from headstart.tracking.runs import read_run_id
from headstart.tracking.store import TrackingStore, answering, open_store

# Params that change no result of a run that ended.
_NO_DIFFERENCE = ("search.storage", "search.workers", "extract.batch_size")


@dataclass(frozen=True)
class RankedRun:
    """One run.

    Attributes:
        experiment, version: DVC's experiment and the registered version; empty without.
        accuracy, log_loss: on development images, out of fold.
        test: accuracy on the test split with its 95 % interval, or None.
        beside_best: accuracy less the best run's on the images of both, with its 95 % interval,
            and whether that is better, worse or undecided; None for the best itself and where too
            few images are common.
        differs: param → its value, where it is not the baseline's; without the head's, which the
            search finds.
        head: what the search found, in words.
        adopt: the command that makes it the one that counts; empty where there is none.
        is_here: whether its model is the one in the workspace.
        mflops, model_mb, seconds: millions of operations an image, millions of bytes of model.h5,
            and what training took; None where the run does not have them.
    """

    run_id: str
    name: str
    experiment: str
    version: str
    accuracy: float
    log_loss: float
    test: tuple[float, float, float] | None
    beside_best: tuple[float, float, float, str] | None
    differs: dict[str, str]
    head: str
    adopt: str
    is_here: bool
    mflops: float | None
    model_mb: float | None
    seconds: float | None

    @property
    def label(self) -> str:
        """What the run is called in a sentence, and in a command."""
        return self.experiment or (f"version {self.version}" if self.version else self.run_id[:8])

    @property
    def changes(self) -> str:
        """The params that are not the baseline's, in words."""
        said = ", ".join(f"{name}={value}" for name, value in self.differs.items())
        return said or "no param"

    @property
    def is_undecided(self) -> bool:
        """Whether the images cannot tell it from the best."""
        return self.beside_best is not None and self.beside_best[3] == "undecided"

    @property
    def verdict(self) -> str:
        """How it does against the best, in words."""
        if self.beside_best is None:
            return "not compared: too few images in common"
        words = {"undecided": "not clearly worse"}
        return words.get(self.beside_best[3], self.beside_best[3])

    @property
    def points(self) -> str:
        """By how much, with the 95 % interval; empty where it is not compared."""
        if self.beside_best is None:
            return ""
        value, low, high = (f"{100 * one:+.1f}" for one in self.beside_best[:3])
        return f"{value} points ({low} to {high})"


@dataclass(frozen=True)
class Leaderboard:
    """Runs by out-of-fold accuracy, then log loss, the best first."""

    baseline: RankedRun
    standings: list[RankedRun]

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "baseline": self.baseline.run_id}

    @property
    def conclusion(self) -> list[str]:
        """Which is best, what made it so, what is as good and cheaper, and how to adopt it."""
        best, baseline = self.standings[0], self.baseline
        lines = [f"Best is {best.label}: {100 * best.accuracy:.1f} % out of fold."]
        if best.run_id == baseline.run_id:
            lines.append("It is the baseline itself: no change has gained anything.")
        else:
            points = 100 * (best.accuracy - baseline.accuracy)
            lines.append(
                f"What made it: {best.changes}, in place of the baseline's ({baseline.label}); the "
                f"search found {best.head}, there {baseline.head}."
            )
            same = [run for run in self.standings if run.run_id == baseline.run_id]
            is_clear = not (same and same[0].is_undecided)
            lines.append(
                f"It gains {points:+.1f} points"
                + ("." if is_clear else ", which these images do not show to be more than chance.")
            )
        equal = [run for run in self.standings[1:] if run.is_undecided]
        if equal:
            verb = "run is" if len(equal) == 1 else "runs are"
            lines.append(f"{len(equal)} other {verb} not clearly worse.")
            costs = [run for run in equal if run.mflops is not None]
            cheapest = min(costs, key=lambda run: run.mflops or 0.0, default=None)
            if cheapest and best.mflops and (cheapest.mflops or 0.0) < 0.9 * best.mflops:
                lines[-1] += (
                    f" Of these {cheapest.label} is the cheapest: {cheapest.mflops:,.0f} in place "
                    f"of {best.mflops:,.0f} MFLOPs an image."
                )
        return lines

    @property
    def adopting(self) -> str:
        """How to adopt the best."""
        best = self.standings[0]
        if best.is_here:
            return "The best is the model in this workspace."
        return f"To adopt the best: {best.adopt}" if best.adopt else ""

    def as_text(self) -> str:
        """The conclusion, then a few lines a run, of 80 columns where names are short."""
        said = [*self.conclusion, self.adopting]
        lines = [line for one in said for line in wrap(printable(one), 80)]
        columns = "run       out of fold  log loss  test (95 % interval)   MFLOPs     MB    s"
        lines += ["", f"    {columns}"]
        for place, run in enumerate(self.standings, start=1):
            test = ""
            if run.test is not None:
                value, low, high = (f"{100 * one:.1f}" for one in run.test)
                test = f"{value} % ({low} to {high})"
            costs = [
                "" if cost is None else f"{cost:,.{digits}f}"
                for cost, digits in ((run.mflops, 0), (run.model_mb, 1), (run.seconds, 0))
            ]
            lines.append(
                f"{place:>3} {run.run_id[:8]}  {100 * run.accuracy:>9.1f} %  {run.log_loss:>8.3f}  "
                f"{test:<21}  {costs[0]:>6}  {costs[1]:>5}  {costs[2]:>3}".rstrip()
            )
            changes = run.changes if run.run_id != self.baseline.run_id else "the baseline"
            known = [run.experiment, f"version {run.version}" if run.version else ""]
            told = [f"{' · '.join(filter(None, known)) or run.name}: {changes}", run.head]
            lines += [f"    {line}" for one in told for line in wrap(printable(one), 76)]
            against = " than the best: ".join(filter(None, (run.verdict, run.points)))
            lines.append(f"    {'the best' if place == 1 else against}")
            if run.is_here:
                lines.append("    in this workspace")
            elif run.adopt:
                lines.append(f"    adopt: {run.adopt}")
        return "\n".join(line.rstrip() for line in lines)


def rank_runs(
    project: Project, *, baseline: str | None = None, most: int = 20, seed: int = 0
) -> Leaderboard:
    """Rank the trained models of the project's experiment.

    Runs are compared with the best on the development images that both have, each predicted by
    heads that had not seen it.

    Args:
        baseline: a run as `named_run` takes it, whose params the others are told by; by default
            the oldest run.
        most: runs that are shown.

    Raises:
        TrackingError: there is no such run, or no trained model yet.
    """
    store = open_store(project.root)
    with answering(store.uri):
        runs = trained_runs(store)
    if not runs:
        raise TrackingError(
            "a leaderboard needs runs of trained models, but the experiment "
            f"{store.experiment_name} has none that ended: run `dvc repro`"
        )
    reference = min(runs, key=lambda run: run.info.start_time)
    if baseline is not None:
        reference = named_run(project, store, baseline)
    runs.sort(key=standing_key)
    tables = [_predictions(store, run) for run in runs[:most]]
    standings = []
    for run, table in zip(runs, tables, strict=False):
        compared = None
        if run is not runs[0] and table is not None and tables[0] is not None:
            compared = compare_predictions(tables[0], table, "validation", seed, {})
        standings.append(_standing(run, reference, compared))
    experiments = experiment_names(project.root)
    here = read_run_id(project.run) if project.run.is_file() else ""

    def placed(run: RankedRun) -> RankedRun:
        # One that failed after train has a run, and is no experiment of DVC's.
        adopt = f"headstart promote {run.version}" if run.version else ""
        if run.experiment in experiments:
            adopt = f"dvc exp apply {run.experiment}"
        return replace(run, adopt=adopt, is_here=run.run_id == here)

    return Leaderboard(_standing(reference, reference, None), [*map(placed, standings)])


def standing_key(run: MlflowRun) -> tuple[float, float]:
    """What runs are ranked by, the best first; one without figures is the last."""
    metrics = run.data.metrics
    return (-metrics.get("val_accuracy", -math.inf), metrics.get("val_log_loss", math.inf))


def _predictions(store: TrackingStore, run: MlflowRun) -> pd.DataFrame | None:
    with tempfile.TemporaryDirectory() as folder:
        return artifact_table(store, run.info.run_id, PREDICTIONS, Path(folder))


def _standing(run: MlflowRun, reference: MlflowRun, compared: Comparison | None) -> RankedRun:
    metrics, tags = run.data.metrics, run.data.tags
    names = ("test_accuracy", "test_accuracy_ci95_low", "test_accuracy_ci95_high")
    test = [metrics[name] for name in names if name in metrics]
    return RankedRun(
        run_id=run.info.run_id,
        name=str(run.info.run_name),
        experiment=tags.get("dvc.exp_name", ""),
        version=tags.get("registered.version", ""),
        accuracy=_figure(run, "val_accuracy"),
        log_loss=_figure(run, "val_log_loss"),
        test=(test[0], test[1], test[2]) if len(test) == len(names) else None,
        beside_best=None
        if compared is None
        else (
            compared.accuracy.value, compared.accuracy.low, compared.accuracy.high, compared.verdict
        ),
        differs=_differing(run.data.params, reference.data.params),
        head=_head(run.data.params),
        adopt="",
        is_here=False,
        mflops=metrics.get("mflops"),
        model_mb=metrics.get("model_mb"),
        seconds=float(tags["train.seconds"]) if "train.seconds" in tags else None,
    )  # fmt: skip


def _differing(own: Mapping[str, str], reference: Mapping[str, str]) -> dict[str, str]:
    names: Sequence[str] = sorted(own.keys() | reference.keys())
    return {
        name: own.get(name, "none")
        for name in names
        if own.get(name) != reference.get(name)
        and name not in _NO_DIFFERENCE
        and not name.startswith("head.")
    }


def _head(params: Mapping[str, str]) -> str:
    if "head.ensemble" in params:
        return f"an ensemble of {params['head.ensemble'].count(',') + 1} heads"
    kind = params.get("head.kind", "a head").replace("_", " ")
    return f"{kind} on {describe_layers(params.get('head.layers', 'last'))}"


def _figure(run: MlflowRun, name: str) -> float:
    return float(run.data.metrics.get(name, float("nan")))
