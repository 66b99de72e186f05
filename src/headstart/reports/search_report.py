"""reports/search/: what a search found, as trials.csv and one self-contained index.html.

The page plots the trials' values against each other and against the fields in which they differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from markupsafe import Markup, escape
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from headstart.common import files
from headstart.heads.config import HeadConfig, list_layers
from headstart.params import search_space
from headstart.params.search import SearchParams
from headstart.reports.charts import Axis, Chart, Range, Series, shortened
from headstart.reports.html import render_page
from headstart.search.results import StudyResult, TrialResult
from headstart.search.space import FIELDS, is_used

Floats = NDArray[np.float64]
_MOST_ROWS = 10
_MOST_CURVES = 10
_MIN_TRIALS_FOR_IMPORTANCES = 8
_LOG_RATIO = 20
_KINDS = {
    "ridge": "ridge",
    "logistic_regression": "logistic regression",
    "network": "network",
}


def write_search_report(folder: Path, result: StudyResult, search: SearchParams) -> None:
    """Write trials.csv and index.html. The bytes depend on the trials alone."""
    table = result.table()
    texts = table.select_dtypes(exclude="number")
    quoted = {str(name): texts[name].map(files.as_cell) for name in texts}
    files.write_text(folder / "trials.csv", table.assign(**quoted).to_csv(index=False))
    ranked = result.ranked()
    fields = varied_fields(ranked, search.space)
    rows = []
    for index, trial in enumerate(ranked[:_MOST_ROWS]):
        cells = []
        for field in fields:
            value = field.values[index]
            text = f"{value:.3g}" if isinstance(value, float) else str(value)
            # Layers are names, which params.yaml takes as they are.
            text = list_layers(text) if field.name == "layers" else text.replace("_", " ")
            cells.append("–" if value is None else text)
        rows.append({"trial": trial, "cells": cells})
    states = [trial.state for trial in result.trials]
    page = {
        "metric": result.metric.replace("_", " "),
        "lower_is_better": result.direction == "minimize",
        "study": result.study_name,
        "storage": None if search.storage else "sqlite:///.headstart/studies/optuna.db",
        "best": result.best,
        "list_layers": list_layers,
        # What is trained in epochs; of heads that are solved there is nothing to tell of these.
        "has_networks": any(t.config and t.config.kind == "network" for t in result.trials),
        "default": next((t for t in result.trials if t.number == 0 and t.value is not None), None),
        "estimate": result.estimate,
        "ensemble": result.ensemble,
        "n_trials": len(result.trials),
        "states": {state: states.count(state) for state in ("COMPLETE", "PRUNED", "FAIL")},
        "n_epochs": sum(len(t.curve.get(result.metric, [])) for t in result.trials),
        "n_fits": result.topic["folds"] * search.repeats,
        "folds": result.topic["folds"],
        "repeats": search.repeats,
        "fields": [field.title for field in fields],
        "rows": rows,
        "failed": [trial for trial in result.trials if trial.state == "FAIL"],
        **_charts(result, fields),
        **_costs(result),
        "importances": importances(result, search.space),
        "parallel_coordinates": parallel_coordinates(result, search.space),
    }
    files.write_text(folder / "index.html", render_page("search_report.html.jinja", **page))


@dataclass(frozen=True)
class Field:
    """One field over some trials.

    Attributes:
        values: one a trial; None where the head has no use for the field.
        is_log: whether a logarithmic axis shows it better.
    """

    name: str
    values: tuple[Any, ...]
    is_log: bool

    @property
    def title(self) -> str:
        return self.name.replace("_", " ")

    @cached_property
    def options(self) -> tuple[Any, ...]:
        """Return the values that occur, sorted."""
        return tuple(sorted({value for value in self.values if value is not None}))

    @property
    def is_numeric(self) -> bool:
        return not isinstance(self.options[0], str)

    def positions(self) -> Floats:
        """Return the trials on an axis from 0 to 1; NaN where the field is not used."""
        if not self.is_numeric:
            indices = {value: i for i, value in enumerate(self.options)}
            raw = np.array([indices.get(value, np.nan) for value in self.values], np.float64)
        else:
            raw = self.numbers()
            raw = np.log(raw) if self.is_log else raw
        low, high = np.nanmin(raw), np.nanmax(raw)
        return np.asarray((raw - low) / (high - low) if high > low else raw - low + 0.5)

    def numbers(self) -> Floats:
        """Return the values of a numeric field; NaN where it is not used."""
        return np.array([np.nan if value is None else value for value in self.values], np.float64)

    def ticks(self) -> list[tuple[float, str]]:
        """Return points on the axis of `positions`, and what to write there."""
        if not self.is_numeric or len(self.options) <= 5:
            only = Field(self.name, self.options, self.is_log).positions()
            return [(float(p), _tick(v)) for p, v in zip(only, self.options, strict=True)]
        low, high = self.options[0], self.options[-1]
        shares = (0.0, 0.5, 1.0)
        if self.is_log:
            marks = [low * (high / low) ** share for share in shares]
        else:
            marks = [low + (high - low) * share for share in shares]
        return [(share, _tick(mark)) for share, mark in zip(shares, marks, strict=True)]


def varied_fields(trials: Sequence[TrialResult], space: search_space.SearchSpace) -> list[Field]:
    """Return the fields in which these trials' heads differ, in the order of asking for them."""
    fields = []
    for name in FIELDS:
        values = tuple(
            getattr(trial.config, name) if trial.config and is_used(trial.config, name) else None
            for trial in trials
        )
        if len({value for value in values if value is not None}) > 1:
            numbers = [value for value in values if isinstance(value, int | float)]
            is_positive = bool(numbers) and min(numbers) > 0
            domain = getattr(space, name)
            is_log = is_positive and (
                max(numbers) / min(numbers) >= _LOG_RATIO
                or (isinstance(domain, search_space.Range) and domain.log)
            )
            fields.append(Field(name, values, is_log))
    return fields


def _charts(result: StudyResult, fields: Sequence[Field]) -> dict[str, Any]:
    """Draw the history of the study, the value against each field, and learning curves."""
    # The value of each trial, and the best so far: a step at each trial, from the value before it.
    done = [trial for trial in result.trials if trial.value is not None]
    keep = np.maximum if result.direction == "maximize" else np.minimum
    best = keep.accumulate(_values(done))
    numbers = np.array([trial.number for trial in done], np.float64)
    series = [Series("best so far", np.repeat(numbers, 2)[1:], np.repeat(best, 2)[:-1])]
    for kind, label in _KINDS.items():
        chosen = [t for t in done if t.config and t.config.kind == kind]
        at = np.array([t.number for t in chosen], np.float64)
        series.append(Series(label, at, _values(chosen), line=False, dots=True))
    pruned = [t for t in result.trials if t.state == "PRUNED" and t.best_epoch]
    if pruned:
        values = np.array([t.at_best()[result.metric] for t in pruned])
        at = np.array([t.number for t in pruned], np.float64)
        series.append(Series("pruned", at, values, line=False, dots=True))
    metric = result.metric.replace("_", " ")
    better = "higher" if result.direction == "maximize" else "lower"
    directed = f"{metric} ({better} is better)"
    limits = _limits(_values(done), result)
    history = Chart(
        Axis("trial", (-0.5, max(len(result.trials) - 0.5, 0.5)), percent=False),
        Axis(directed, limits, percent=False),
        [_within(one, limits) for one in series if len(one.x)],
        "The value of each trial, and the best so far",
    )

    # The value against each field, over the trials that use it; later trials are darker.
    ranked = result.ranked()
    values = _values(ranked)
    numbers = np.array([trial.number for trial in ranked])
    limits = _limits(values, result)
    strengths = 0.2 + 0.75 * numbers / max(1, numbers.max(initial=0))
    slices = []
    for field in fields:
        x = field.positions()
        if not field.is_numeric:
            # Spread, so that equal choices do not hide each other; by number, so always alike.
            x = x + (numbers * 0.618034 % 1 - 0.5) * 0.2 / max(1, len(field.options) - 1)
        marks = [(share, shortened(text.replace("_", " "), 12)) for share, text in field.ticks()]
        dots = Series(field.title, x, values, strengths=strengths, line=False, dots=True)
        chart = Chart(
            Axis(field.title, (-0.14, 1.14), marks=marks),
            Axis(metric, limits, percent=False),
            [_within(dots, limits)],
            f"The value against {field.title}",
            size_px=(300, 230),
        )
        slices.append(chart.svg())

    # The validation curve of the best ten networks; a ring marks the best epoch.
    trials = [t for t in ranked if len(t.curve[result.metric]) > 1][:_MOST_CURVES]
    curves = [np.array(t.curve[result.metric], np.float64) for t in trials]
    limits = _limits(np.concatenate([*curves, np.zeros(0)]), result)
    series = []
    for trial, curve in zip(trials, curves, strict=True):
        epochs, rings = np.arange(1.0, len(curve) + 1), [(trial.best_epoch or 1) - 1]
        series.append(_within(Series(f"trial {trial.number}", epochs, curve, rings=rings), limits))
    longest = max((len(curve) for curve in curves), default=2)
    learning_curves = Chart(
        Axis("epoch", (1.0, float(longest)), percent=False),
        Axis(directed, limits, percent=False),
        series,
        "Validation curves of the best networks",
    )
    return {"history": history.svg(), "slices": slices, "learning_curves": learning_curves.svg()}


def _costs(result: StudyResult) -> dict[str, Any]:
    """Draw the value against what the model costs, and the Pareto front."""
    trials = [trial for trial in result.ranked() if trial.mflops is not None]
    front = result.pareto_front()
    if len({trial.mflops for trial in trials}) < 2:
        return {"front": []}
    limits = _limits(_values(trials), result)
    costs = np.array([trial.mflops for trial in trials], np.float64)
    at = np.array([trial.mflops for trial in front], np.float64)
    # What is cheaper than the next of the front is at most as good as the one before.
    room = 0.04 * (costs.max() - costs.min())
    x, y = np.repeat([*at, costs.max() + room], 2)[1:-1], np.repeat(_values(front), 2)
    series = [Series("Pareto front", x, y[: len(x)])]
    for kind, label in _KINDS.items():
        rows = [i for i, t in enumerate(trials) if t.config and t.config.kind == kind]
        series.append(Series(label, costs[rows], _values(trials)[rows], line=False, dots=True))
    better = "higher" if result.direction == "maximize" else "lower"
    chart = Chart(
        Axis("MFLOPs per image", (costs.min() - room, costs.max() + room), percent=False),
        Axis(f"{result.metric.replace('_', ' ')} ({better} is better)", limits, percent=False),
        [_within(one, limits) for one in series if len(one.x)],
        "The value of each trial against what its model costs",
    )
    return {"front": front, "costs": chart.svg()}


def importances(result: StudyResult, space: search_space.SearchSpace) -> dict[str, float]:
    """Return how much of the networks' rank each field explains; empty with too few trials.

    Ranks, because one head that failed to learn would otherwise outweigh all differences between
    good ones. The method is fANOVA (Hutter, Hoos and Leyton-Brown, 2014), as in Optuna.
    """
    trials = [t for t in result.ranked() if t.config and t.config.kind == "network"]
    fields = varied_fields(trials, space)
    if len(trials) < _MIN_TRIALS_FOR_IMPORTANCES or len(set(_values(trials))) < 3 or not fields:
        return {}
    study = optuna.create_study()
    domains: dict[str, BaseDistribution] = {}
    for field in fields:
        # What heads that do not use a field hold there.
        default = getattr(HeadConfig(), field.name)
        if not field.is_numeric:
            domains[field.name] = CategoricalDistribution(sorted({*field.options, default}))
        else:
            low, high = min(*field.options, default), max(*field.options, default)
            # The default may be 0 where the trials' own values are not.
            is_log = field.is_log and low > 0
            domains[field.name] = FloatDistribution(float(low), float(high), log=is_log)
    for rank, trial in enumerate(trials):
        assert trial.config is not None
        values = {field.name: getattr(trial.config, field.name) for field in fields}
        study.add_trial(create_trial(value=float(rank), params=values, distributions=domains))
    found = get_param_importances(
        study, evaluator=FanovaImportanceEvaluator(n_trees=32, max_depth=16, seed=0)
    )
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def parallel_coordinates(result: StudyResult, space: search_space.SearchSpace) -> Markup:
    """Draw every completed network as a line through its fields; the best on top and darkest.

    Solved heads, which use none of most fields, are shown where nothing else is.
    """
    done = result.ranked()[::-1]
    trials = [t for t in done if t.config and t.config.kind == "network"] or done
    fields = varied_fields(trials, space)
    ranks = np.linspace(0, 1, len(trials)) if len(trials) > 1 else np.ones(1)
    step, top, height = 118, 44, 260
    columns = np.array([*(field.positions() for field in fields), ranks])
    width = step * len(fields) + 110
    parts = []
    for trial, line, rank in zip(trials, columns.T, ranks, strict=True):
        points = " ".join(
            f"{20 + step * axis},{top + height * (1 - line[axis]):.1f}"
            for axis in np.flatnonzero(np.isfinite(line))
        )
        strength = f"stroke-width:{0.8 + 1.8 * rank:.2f};stroke-opacity:{0.12 + 0.8 * rank:.2f}"
        parts.append(
            f'<g class="s0"><title>trial {trial.number}: {trial.value:.4g}</title>'
            f'<polyline points="{points}" style="{strength}"/></g>'
        )
    ends = ((0.0, f"{trials[0].value:.4g}"), (1.0, f"{trials[-1].value:.4g}"))
    axes = [*((field.title, field.ticks()) for field in fields), ("value", list(ends))]
    for axis, (title, ticks) in enumerate(axes):
        x = 20 + step * axis
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{top}" y2="{top + height}"/>')
        # Every second title stands higher, so that long ones do not meet.
        y = 16 if axis % 2 else 34
        anchor = "start" if axis == 0 else "end" if axis == len(fields) else "middle"
        parts.append(
            f'<text class="axis" x="{x}" y="{y}" text-anchor="{anchor}">{escape(title)}</text>'
        )
        for share, text in ticks:
            y_px = top + height * (1 - share)
            label = escape(shortened(text.replace("_", " "), 14))
            parts.append(
                f'<text class="label" x="{x + 5}" y="{y_px:.1f}" dy=".35em">{label}</text>'
            )
    return Markup(
        f'<figure class="chart-box"><svg class="chart" style="width:{width}px;max-width:none" '
        f'viewBox="0 0 {width} {top + height + 12}" role="img" '
        f'aria-label="parallel coordinates of the completed trials">{"".join(parts)}</svg></figure>'
    )


def _within(series: Series, limits: Range) -> Series:
    """Return the series without what lies outside the chart."""
    inside = (series.y >= limits[0]) & (series.y <= limits[1])
    return replace(
        series,
        y=np.where(inside, series.y, np.nan),
        rings=[row for row in series.rings if inside[row]],
    )


def _limits(values: Floats, result: StudyResult) -> Range:
    """Return the range to show; the worst tenth stays outside where it would squeeze the others."""
    if not len(values):
        return 0.0, 1.0
    tail = 0.1 if len(values) >= 5 else 0.0
    low, high = np.quantile(
        values, [0.0, 1 - tail] if result.direction == "minimize" else [tail, 1.0]
    )
    if high <= low:
        low, high = values.min(), values.max()
    room = 0.06 * (high - low) or 0.5
    return float(low - room), float(high + room)


def _values(trials: Sequence[TrialResult]) -> Floats:
    return np.array([trial.value for trial in trials], np.float64)


def _tick(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)
