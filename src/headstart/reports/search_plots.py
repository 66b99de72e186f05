"""What a search found, as charts."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import optuna
from markupsafe import Markup, escape
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from headstart.heads.config import HeadConfig
from headstart.params.search_space import SearchSpace
from headstart.reports.charts import Axis, Chart, Range, Series, shortened
from headstart.reports.search_fields import Field, varied_fields
from headstart.search.search_heads import StudyResult, TrialResult

_MOST_CURVES = 10
_MIN_TRIALS_FOR_IMPORTANCES = 8
_KINDS = {"network": "network", "linear_probe": "linear probe"}

Floats = NDArray[np.float64]


def history(result: StudyResult) -> Chart:
    """The value of each trial, and the best so far."""
    done = [trial for trial in result.trials if trial.value is not None]
    keep = np.maximum if result.direction == "maximize" else np.minimum
    best = keep.accumulate(_values(done))
    # A step at each trial: the value before it, then its own.
    numbers = np.array([trial.number for trial in done], np.float64)
    series = [
        Series("best so far", np.repeat(numbers, 2)[1:], np.repeat(best, 2)[:-1]),
        *(_dots(label, [t for t in done if t.config and t.config.kind == kind])
          for kind, label in _KINDS.items()),
    ]  # fmt: skip
    pruned = [t for t in result.trials if t.state == "PRUNED" and t.best_epoch]
    if pruned:
        values = np.array([t.at_best()[result.metric] for t in pruned])
        at = np.array([t.number for t in pruned], np.float64)
        series.append(Series("pruned", at, values, line=False, dots=True))
    return Chart(
        Axis("trial", (-0.5, max(len(result.trials) - 0.5, 0.5)), percent=False),
        Axis(_metric(result), _limits(_values(done), result), percent=False),
        [_within(one, _limits(_values(done), result)) for one in series if len(one.x)],
        "The value of each trial, and the best so far",
    )


def importances(result: StudyResult, space: SearchSpace) -> dict[str, float]:
    """How much of the networks' rank each field explains, by fANOVA; empty with too few trials.

    Ranks, because one head that failed to learn would otherwise outweigh all differences between
    good ones. The method is that of Hutter, Hoos and Leyton-Brown (2014), as in Optuna.
    """
    trials = [t for t in result.ranked() if t.config and t.config.kind == "network"]
    fields = varied_fields(trials, space)
    if len(trials) < _MIN_TRIALS_FOR_IMPORTANCES or len(set(_values(trials))) < 3 or not fields:
        return {}
    study = optuna.create_study()
    domains = {field.name: _distribution(field) for field in fields}
    for rank, trial in enumerate(trials):
        assert trial.config is not None
        values = {field.name: getattr(trial.config, field.name) for field in fields}
        study.add_trial(create_trial(value=float(rank), params=values, distributions=domains))
    found = get_param_importances(
        study, evaluator=FanovaImportanceEvaluator(n_trees=32, max_depth=16, seed=0)
    )
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def parallel_coordinates(result: StudyResult, space: SearchSpace) -> Markup:
    """Every completed network as a line through its fields; the best on top and darkest.

    Linear probes, which use none of most fields, are shown where nothing else is.
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
            f"{20 + step * place},{top + height * (1 - line[place]):.1f}"
            for place in np.flatnonzero(np.isfinite(line))
        )
        strength = f"stroke-width:{0.8 + 1.8 * rank:.2f};stroke-opacity:{0.12 + 0.8 * rank:.2f}"
        parts.append(
            f'<g class="s0"><title>trial {trial.number}: {trial.value:.4g}</title>'
            f'<polyline points="{points}" style="{strength}"/></g>'
        )
    ends = ((0.0, f"{trials[0].value:.4g}"), (1.0, f"{trials[-1].value:.4g}"))
    axes = [*((field.title, field.ticks()) for field in fields), ("value", list(ends))]
    for place, (title, ticks) in enumerate(axes):
        x = 20 + step * place
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{top}" y2="{top + height}"/>')
        # Every second title stands higher, so that long ones do not meet.
        y = 16 if place % 2 else 34
        anchor = "start" if place == 0 else "end" if place == len(fields) else "middle"
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


def slices(result: StudyResult, space: SearchSpace) -> list[Chart]:
    """The value against each field, over the trials that use it; later trials are darker."""
    trials = result.ranked()
    values = _values(trials)
    numbers = np.array([trial.number for trial in trials])
    limits = _limits(values, result)
    strengths = 0.2 + 0.75 * numbers / max(1, numbers.max(initial=0))
    charts = []
    for field in varied_fields(trials, space):
        x = field.positions()
        if not field.is_numeric:
            # spread, so that equal choices do not hide each other; by number, so always alike
            x = x + (numbers * 0.618034 % 1 - 0.5) * 0.2 / max(1, len(field.options) - 1)
        marks = [(share, shortened(text.replace("_", " "), 12)) for share, text in field.ticks()]
        dots = Series(field.title, x, values, strengths=strengths, line=False, dots=True)
        charts.append(
            Chart(
                Axis(field.title, (-0.14, 1.14), marks=marks),
                Axis(result.metric.replace("_", " "), limits, percent=False),
                [_within(dots, limits)],
                f"The value against {field.title}",
                size_px=(300, 230),
            )
        )
    return charts


def learning_curves(result: StudyResult) -> Chart:
    """The validation curve of the best ten networks; a ring marks the best epoch."""
    trials = [t for t in result.ranked() if len(t.curve[result.metric]) > 1][:_MOST_CURVES]
    curves = [np.array(t.curve[result.metric], np.float64) for t in trials]
    limits = _limits(np.concatenate([*curves, np.zeros(0)]), result)
    series = [
        _within(
            Series(
                f"trial {trial.number}",
                np.arange(1.0, len(curve) + 1),
                curve,
                rings=[(trial.best_epoch or 1) - 1],
            ),
            limits,
        )
        for trial, curve in zip(trials, curves, strict=True)
    ]
    longest = max((len(curve) for curve in curves), default=2)
    return Chart(
        Axis("epoch", (1.0, float(longest)), percent=False),
        Axis(_metric(result), limits, percent=False),
        series,
        "Validation curves of the best networks",
    )


def _dots(label: str, trials: Sequence[TrialResult]) -> Series:
    numbers = np.array([trial.number for trial in trials], np.float64)
    return Series(label, numbers, _values(trials), line=False, dots=True)


def _within(series: Series, limits: Range) -> Series:
    """The series without what lies outside the chart."""
    inside = (series.y >= limits[0]) & (series.y <= limits[1])
    return replace(
        series,
        y=np.where(inside, series.y, np.nan),
        rings=[row for row in series.rings if inside[row]],
    )


def _distribution(field: Field) -> BaseDistribution:
    if not field.is_numeric:
        return CategoricalDistribution(sorted({*field.options, *_defaults(field)}))
    numbers = [float(value) for value in (*field.options, *_defaults(field))]
    # the default may be 0 where the trials' own values are not
    return FloatDistribution(min(numbers), max(numbers), log=field.is_log and min(numbers) > 0)


def _defaults(field: Field) -> tuple[object, ...]:
    """What heads that do not use a field hold there."""
    return (getattr(HeadConfig(), field.name),)


def _limits(values: Floats, result: StudyResult) -> Range:
    """The range to show; the worst tenth stays outside where it would squeeze the others."""
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


def _metric(result: StudyResult) -> str:
    better = "higher" if result.direction == "maximize" else "lower"
    return f"{result.metric.replace('_', ' ')} ({better} is better)"
