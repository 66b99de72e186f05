"""What differs between runs: params, metrics with their surprise, and the data behind them."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from headstart.common.errors import TrackingError
from headstart.common.files import of_cell
from headstart.common.paths import Project
from headstart.common.terminal import printable
from headstart.evaluation.comparison import Comparison
from headstart.tracking.named_runs import named_run
from headstart.tracking.registration import PREDICTIONS, compare_predictions
from headstart.tracking.store import TrackingStore, open_store

MANIFEST = "provenance/manifest.csv"
# Tags that say how a run was made, but for those of the stage and of the run itself.
_FACTS = ("version.", "git.", "dvc.", "machine.", "fingerprint")
_NO_FACTS = ("dvc.models/run.json", "dvc.stage")
_MOST_LETTERS = 22
# Classes and groups may be called 01 or NA.
_TEXTS = dict.fromkeys(("label", "predicted_label", "group", "path", "split"), str)


@dataclass(frozen=True)
class DataChange:
    """What happened to the images from one run to the next, by content (sha256)."""

    added: list[str]
    removed: list[str]
    relabelled: list[str]
    moved: list[str]

    @property
    def sentence(self) -> str:
        """The change in words."""
        if not (self.added or self.removed or self.relabelled or self.moved):
            return "The data are the same."
        return (
            f"Of the data, {len(self.added)} images were added, {len(self.removed)} removed, "
            f"{len(self.relabelled)} relabelled, {len(self.moved)} moved to another split."
        )


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
class RunPair:
    """One run beside the first: on the images that both predicted."""

    run_id: str
    test: Comparison | None
    data: DataChange | None
    changed: list[ChangedPrediction]


@dataclass(frozen=True)
class RunComparison:
    """Several runs; the first is the baseline, which the candidates are compared with.

    Attributes:
        params, versions: only those that differ; one value per run, "" where it has none.
        metrics: validation and test metrics, one value per run, None where it has none.
    """

    run_ids: list[str]
    names: list[str]
    params: dict[str, list[str]]
    versions: dict[str, list[str]]
    metrics: dict[str, list[float | None]]
    pairs: list[RunPair]

    @property
    def roles(self) -> list[str]:
        """What each run is called: the baseline, and one candidate or several."""
        n = len(self.run_ids) - 1
        return ["baseline", *(f"candidate {i}" if n > 1 else "candidate" for i in range(1, n + 1))]

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def as_text(self) -> str:
        """Return a table for the terminal."""
        columns = self.roles
        rows: list[list[str]] = [["", *columns]]
        table = self.params | self.versions
        rows += [[name, *map(_shortened, values)] for name, values in table.items()]
        for name, numbers in self.metrics.items():
            rows.append([name, *("" if n is None else f"{n:.4f}" for n in numbers)])
        widths = [max(len(row[i]) for row in rows) for i in range(len(columns) + 1)]
        # Names are longer than columns of a terminal.
        width = max(map(len, columns))
        lines = [
            f"{role:<{width}}  {run_id[:8]}  {printable(name)}"
            for role, run_id, name in zip(columns, self.run_ids, self.names, strict=True)
        ]
        lines.append("")
        lines += ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
        for role, pair in zip(columns[1:], self.pairs, strict=True):
            lines += ["", f"{role} against the baseline:"]
            lines += [f"  {part.sentence}" for part in (pair.test, pair.data) if part is not None]
            lines.append(f"  {len(pair.changed)} images are predicted differently")
        return "\n".join(line.rstrip() for line in lines)


def compare_runs(project: Project, names: Sequence[str], *, seed: int) -> RunComparison:
    """Compare runs of trained models, as far as they have manifests and predictions.

    Images are the same if their content is.

    Args:
        names: as `named_run` takes them; the first is the baseline.

    Raises:
        TrackingError: fewer than two runs, or one that the store does not have.
    """
    store = open_store(project.root)
    runs = [named_run(project, store, name) for name in names]
    if len({run.info.run_id for run in runs}) < 2:
        raise TrackingError("a comparison needs at least two runs: name another")
    metrics: dict[str, list[float | None]] = {}
    tables: list[dict[str, pd.DataFrame]] = []
    facts: list[dict[str, str]] = []
    for position, run in enumerate(runs):
        tags = {name: value for name, value in run.data.tags.items() if name.startswith(_FACTS)}
        facts.append({name: tags[name] for name in tags if not name.startswith(_NO_FACTS)})
        for name, latest in run.data.metrics.items():
            if name.startswith(("val_", "test_")) and name != "test_n_test":
                # Version 0.1.0 logged curves under the names of validation figures, from step 1
                # on, so that MLflow's latest value is that of the last epoch; the model's own is
                # always that of step 0.
                history = store.client.get_metric_history(run.info.run_id, name)
                finals = [metric for metric in history if metric.step == 0]
                newest = max(finals, key=lambda metric: metric.timestamp, default=None)
                values = metrics.setdefault(name, [None] * len(runs))
                values[position] = latest if newest is None else newest.value
        tables.append({})
        for name in (PREDICTIONS, MANIFEST):
            with tempfile.TemporaryDirectory() as folder:
                table = artifact_table(store, run.info.run_id, name, Path(folder))
            if table is not None:
                table = table.drop_duplicates("sha256")
                tables[-1][name] = table.set_index("sha256", drop=False)
    pairs = []
    first = tables[0]
    for run, named in zip(runs[1:], tables[1:], strict=True):
        test, data, changed = None, None, []
        if MANIFEST in first and MANIFEST in named:
            old, new = first[MANIFEST], named[MANIFEST]
            both = new.index.intersection(old.index)
            now, then = new.loc[both], old.loc[both]
            data = DataChange(
                added=sorted(new.loc[new.index.difference(old.index), "path"]),
                removed=sorted(old.loc[old.index.difference(new.index), "path"]),
                relabelled=sorted(now.loc[now["label"] != then["label"], "path"]),
                moved=sorted(now.loc[now["split"] != then["split"], "path"]),
            )
        if PREDICTIONS in first and PREDICTIONS in named:
            old, new = first[PREDICTIONS], named[PREDICTIONS]
            groups = dict(named[MANIFEST]["group"]) if MANIFEST in named else {}
            test = compare_predictions(old, new, "test", seed, groups)
            if test is not None:
                # Nothing is at stake here: these are roles in the registry.
                said = test.sentence.replace("challenger", "candidate")
                test = replace(test, sentence=said.replace("champion", "baseline"))
            rows = new.join(old[["predicted_label", "split"]].add_suffix("_old"), how="inner")
            differs = rows["predicted_label"] != rows["predicted_label_old"]
            shown = ["path", "sha256", "label", "split", "predicted_label_old", "predicted_label"]
            rows = rows.loc[differs & (rows["split"] == rows["split_old"]), shown]
            changed = [
                ChangedPrediction(*map(str, row))
                for row in rows.sort_values("path").itertuples(index=False)
            ]
        pairs.append(RunPair(run.info.run_id, test, data, changed))
    return RunComparison(
        run_ids=[run.info.run_id for run in runs],
        names=[str(run.info.run_name) for run in runs],
        params=_differing([run.data.params for run in runs]),
        versions=_differing(facts),
        metrics=dict(sorted(metrics.items())),
        pairs=pairs,
    )


def artifact_table(
    store: TrackingStore, run_id: str, name: str, folder: Path
) -> pd.DataFrame | None:
    """Return a CSV artifact of a run with a row an image, downloaded into `folder`; None without.

    Classes and groups may be called 01 or NA, and stay that.
    """
    path = store.artifact(run_id, name, folder)
    if path is None:
        return None
    table = pd.read_csv(path, dtype=_TEXTS, keep_default_na=False, na_filter=False)
    return table.assign(**{text: table[text].map(of_cell) for text in _TEXTS if text in table})


def _shortened(value: str) -> str:
    """Hashes and paths are longer than a column of a terminal; JSON has them whole."""
    return value if len(value) <= _MOST_LETTERS else f"{value[: _MOST_LETTERS - 1]}…"


def _differing(each: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    names = sorted({name for values in each for name in values})
    table = {name: [values.get(name, "") for values in each] for name in names}
    return {name: values for name, values in table.items() if len(set(values)) > 1}
