"""What differs between runs: params, metrics with their surprise, and the data behind them."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from headstart.common.errors import TrackingError
from headstart.common.files import of_cell
from headstart.common.paths import Project
from headstart.evaluation.comparison import Comparison
from headstart.tracking.gate import PREDICTIONS, compare_predictions
from headstart.tracking.store import TrackingStore, open_store

_MANIFEST = "provenance/manifest.csv"
# Params that say how a run was made, not what the model is.
_NOT_METRICS = ("test_n_test",)


@dataclass(frozen=True)
class DataChange:
    """What happened to the images from one run to the next, by content (sha256)."""

    added: list[str]
    removed: list[str]
    relabelled: list[str]
    moved: list[str]

    @property
    def is_none(self) -> bool:
        return not (self.added or self.removed or self.relabelled or self.moved)


@dataclass(frozen=True)
class ChangedPrediction:
    """An image that two runs predict differently."""

    path: str
    sha256: str
    label: str
    split: str
    before: str
    after: str


@dataclass(frozen=True)
class Pair:
    """One run beside the first: on the images that both predicted."""

    run_id: str
    test: Comparison | None
    data: DataChange | None
    changed: list[ChangedPrediction]


@dataclass(frozen=True)
class RunComparison:
    """Several runs; the first is what the others are compared with.

    Attributes:
        params, tags: only those that differ; one value a run, "" where it has none.
        metrics: validation and test metrics, one value a run, None where it has none.
    """

    run_ids: list[str]
    names: list[str]
    params: dict[str, list[str]]
    versions: dict[str, list[str]]
    metrics: dict[str, list[float | None]]
    pairs: list[Pair]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def compare_runs(project: Project, run_ids: Sequence[str], *, seed: int) -> RunComparison:
    """Compare runs of trained models.

    Raises:
        TrackingError: fewer than two runs, or one that is not there.
    """
    if len(set(run_ids)) < 2:
        raise TrackingError("a comparison needs at least two runs: name another run id")
    store = open_store(project.root)
    runs = [_get(store, run_id) for run_id in run_ids]
    with tempfile.TemporaryDirectory() as folder:
        tables = [_tables(store, run, Path(folder) / run.info.run_id) for run in runs]
        pairs = [
            _pair(run, tables[0], after, seed) for run, after in zip(runs, tables, strict=True)
        ]
    finals = [_final_metrics(store, run) for run in runs]
    metrics = sorted({name for final in finals for name in final})
    return RunComparison(
        run_ids=[run.info.run_id for run in runs],
        names=[str(run.info.run_name) for run in runs],
        params=_differing([run.data.params for run in runs]),
        versions=_differing([_facts(run) for run in runs]),
        metrics={name: [final.get(name) for final in finals] for name in metrics},
        pairs=pairs[1:],
    )


def as_text(comparison: RunComparison) -> str:
    """A table for the terminal."""
    columns = [run_id[:8] for run_id in comparison.run_ids]
    rows: list[list[str]] = [["", *columns]]
    rows += [[name, *values] for name, values in comparison.params.items()]
    rows += [[name, *values] for name, values in comparison.versions.items()]
    for name, numbers in comparison.metrics.items():
        rows.append([name, *("" if n is None else f"{n:.4f}" for n in numbers)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns) + 1)]
    # Names are longer than columns of a terminal.
    lines = [f"{run}  {name}" for run, name in zip(columns, comparison.names, strict=True)]
    lines += ["", *("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows)]
    for pair in comparison.pairs:
        lines += ["", f"{pair.run_id[:8]} beside {columns[0]}:"]
        if pair.test is not None:
            lines.append(f"  {pair.test.sentence}")
        if pair.data is not None:
            lines.append(f"  {data_in_words(pair.data)}")
        lines.append(f"  {len(pair.changed)} images are predicted differently")
    return "\n".join(line.rstrip() for line in lines)


def data_in_words(change: DataChange) -> str:
    """A data change as a sentence."""
    if change.is_none:
        return "The data are the same."
    return (
        f"Of the data, {len(change.added)} images were added, {len(change.removed)} removed, "
        f"{len(change.relabelled)} relabelled, {len(change.moved)} moved to another split."
    )


def data_change(before: pd.DataFrame, after: pd.DataFrame) -> DataChange:
    """Compare two manifests by content; each list holds paths, sorted."""
    old, new = (table.drop_duplicates("sha256").set_index("sha256") for table in (before, after))
    both = new.index.intersection(old.index)
    relabelled = both[new.loc[both, "label"].to_numpy() != old.loc[both, "label"].to_numpy()]
    moved = both[new.loc[both, "split"].to_numpy() != old.loc[both, "split"].to_numpy()]
    return DataChange(
        added=sorted(new.loc[new.index.difference(old.index), "path"]),
        removed=sorted(old.loc[old.index.difference(new.index), "path"]),
        relabelled=sorted(new.loc[relabelled, "path"]),
        moved=sorted(new.loc[moved, "path"]),
    )


def changed_predictions(before: pd.DataFrame, after: pd.DataFrame) -> list[ChangedPrediction]:
    """Images of the same split that both predict, and predict differently."""
    old, new = (table.drop_duplicates("sha256").set_index("sha256") for table in (before, after))
    both = new.join(old[["predicted_label", "split"]].add_suffix("_old"), how="inner")
    both = both[both["split"] == both["split_old"]]
    different = both[both["predicted_label"].astype(str) != both["predicted_label_old"].astype(str)]
    return [
        ChangedPrediction(
            path=str(row["path"]),
            sha256=str(sha256),
            label=str(row["label"]),
            split=str(row["split"]),
            before=str(row["predicted_label_old"]),
            after=str(row["predicted_label"]),
        )
        for sha256, row in different.sort_values("path").iterrows()
    ]


def _pair(
    run: Run, before: dict[str, pd.DataFrame], after: dict[str, pd.DataFrame], seed: int
) -> Pair:
    predicted = PREDICTIONS in before and PREDICTIONS in after
    known = _MANIFEST in before and _MANIFEST in after
    return Pair(
        run_id=run.info.run_id,
        test=_paired(before, after, seed) if predicted else None,
        data=data_change(before[_MANIFEST], after[_MANIFEST]) if known else None,
        changed=changed_predictions(before[PREDICTIONS], after[PREDICTIONS]) if predicted else [],
    )


def _paired(
    before: dict[str, pd.DataFrame], after: dict[str, pd.DataFrame], seed: int
) -> Comparison | None:
    manifest = after.get(_MANIFEST)
    groups = {} if manifest is None else dict(zip(manifest.sha256, manifest.group, strict=True))
    return compare_predictions(before[PREDICTIONS], after[PREDICTIONS], "test", seed, groups)


def _tables(store: TrackingStore, run: Run, folder: Path) -> dict[str, pd.DataFrame]:
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in (PREDICTIONS, _MANIFEST):
        try:
            path = store.client.download_artifacts(run.info.run_id, name, str(folder))
        except (MlflowException, OSError):
            continue
        # Classes and groups may be called 01 or NA.
        texts = dict.fromkeys(("label", "predicted_label", "group", "path", "split"), str)
        table = pd.read_csv(path, dtype=texts, keep_default_na=False, na_filter=False)
        cells = {text: table[text].map(of_cell) for text in texts if text in table.columns}
        found[name] = table.assign(**cells)
    return found


def _differing(each: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    names = sorted({name for values in each for name in values})
    table = {name: [values.get(name, "") for values in each] for name in names}
    return {name: values for name, values in table.items() if len(set(values)) > 1}


def _facts(run: Run) -> dict[str, str]:
    prefixes = ("version.", "git.", "dvc.", "machine.", "fingerprint")
    leave_out = ("dvc.models/run.json", "dvc.stage")
    return {
        name: value
        for name, value in run.data.tags.items()
        if name.startswith(prefixes) and not name.startswith(leave_out)
    }


def _final_metrics(store: TrackingStore, run: Run) -> dict[str, float]:
    """Validation and test figures of the model.

    Version 0.1.0 logged curves under the names of validation figures, from step 1 on, so that
    MLflow's latest value is that of the last epoch; the model's own is always that of step 0.
    """
    found = {}
    for name, latest in run.data.metrics.items():
        if name in _NOT_METRICS or not name.startswith(("val_", "test_")):
            continue
        history = store.client.get_metric_history(run.info.run_id, name)
        finals = [metric for metric in history if metric.step == 0]
        newest = max(finals, key=lambda metric: metric.timestamp, default=None)
        found[name] = latest if newest is None else newest.value
    return found


def _get(store: TrackingStore, run_id: str) -> Run:
    try:
        return store.client.get_run(run_id)
    except MlflowException:
        raise TrackingError(
            f"a run must be in the tracking store, but there is no run {run_id}: look it up in "
            "`mlflow ui`, or set MLFLOW_TRACKING_URI"
        ) from None
