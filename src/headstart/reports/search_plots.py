"""What a search found, as plots: each a figure in the house style."""

from collections.abc import Sequence

import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from headstart.heads.config import HeadConfig
from headstart.heads.search import StudyResult, TrialResult
from headstart.params.search_space import SearchSpace
from headstart.reports.plots import COLOURS, new_figure
from headstart.reports.search_fields import Field, varied_fields

_MOST_CURVES = 10
_MIN_TRIALS_FOR_IMPORTANCES = 8
_COLOUR_MAP = "viridis_r"
_KINDS = {"network": "network", "linear_probe": "linear probe"}

Floats = NDArray[np.float64]


def history(result: StudyResult) -> Figure:
    """The value of each trial, and the best so far."""
    figure, axes = new_figure(7.2, 3.6)
    for colour, (kind, label) in zip(COLOURS, _KINDS.items(), strict=False):
        done = [
            t for t in result.trials if t.value is not None and t.config and t.config.kind == kind
        ]
        if done:
            axes.scatter(
                [t.number for t in done], _values(done), s=22, color=colour, label=label, zorder=3
            )
    pruned = [t for t in result.trials if t.state == "PRUNED" and t.best_epoch]
    if pruned:
        best = [t.at_best()[result.metric] for t in pruned]
        axes.scatter(
            [t.number for t in pruned],
            best,
            s=22,
            facecolors="none",
            edgecolors=COLOURS[7],
            label="pruned",
            zorder=2,
        )
    done = [trial for trial in result.trials if trial.value is not None]
    keep = np.maximum if result.direction == "maximize" else np.minimum
    so_far = keep.accumulate(_values(done))
    axes.step([t.number for t in done], so_far, where="post", color=COLOURS[3], label="best so far")
    _limit(axes, _values(done), result)
    axes.set(xlabel="trial", ylabel=_metric(result))
    axes.legend(loc="upper right" if result.direction == "minimize" else "lower right")
    return figure


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


def importance_bars(found: dict[str, float]) -> Figure:
    """The importances as bars."""
    names = list(found)[::-1]
    figure, axes = new_figure(7.2, 0.9 + 0.32 * len(names))
    axes.barh([name.replace("_", " ") for name in names], [found[name] for name in names])
    axes.set(xlabel="share of the differences in rank that it explains", xlim=(0, None))
    axes.grid(axis="y", visible=False)
    return figure


def parallel_coordinates(result: StudyResult, space: SearchSpace) -> Figure:
    """Every completed network as a line through its fields; the best on top and darkest.

    Linear probes, which use none of most fields, are shown where nothing else is.
    """
    done = result.ranked()[::-1]
    trials = [t for t in done if t.config and t.config.kind == "network"] or done
    fields = varied_fields(trials, space)
    columns = [field.positions() for field in fields]
    ranks = np.linspace(0, 1, len(trials)) if len(trials) > 1 else np.ones(1)
    figure, axes = new_figure(max(7.2, 1.05 * (len(fields) + 1)), 4.2)
    lines = np.array([*columns, ranks]).T
    for line, rank in zip(lines, ranks, strict=True):
        used = np.flatnonzero(np.isfinite(line))
        points = np.column_stack([used, line[used]])
        axes.add_collection(
            LineCollection(
                [points],
                array=[rank],
                cmap=_COLOUR_MAP,
                norm=None,
                clim=(0, 1),
                linewidths=0.8 + 1.4 * rank,
                alpha=0.35 + 0.6 * rank,
            )
        )
    _coordinate_axes(axes, fields, trials)
    axes.set_title(f"the right-most axis is the rank by {_metric(result)}", fontsize=9, loc="right")
    return figure


def slices(result: StudyResult, space: SearchSpace) -> Figure:
    """The value against each field, over the trials that use it; later trials are darker."""
    trials = result.ranked()
    fields = varied_fields(trials, space)
    n_columns = 4
    n_rows = max(1, -(-len(fields) // n_columns))
    figure, first = new_figure(10.4, 2.4 * n_rows)
    first.remove()
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharey=True)
    values = _values(trials)
    numbers = np.array([trial.number for trial in trials])
    for axes, field in zip(grid.flat, fields, strict=False):
        _slice(axes, field, values, numbers)
        _limit(axes, values, result)
    for axes in grid.flat[len(fields) :]:
        axes.remove()
    for row in grid:
        row[0].set_ylabel(_metric(result))
    return figure


def learning_curves(result: StudyResult) -> Figure:
    """The validation curve of the best ten networks; a dot marks the best epoch."""
    figure, axes = new_figure(7.2, 3.9)
    trials = [t for t in result.ranked() if len(t.curve[result.metric]) > 1][:_MOST_CURVES]
    for place, trial in enumerate(trials):
        curve = trial.curve[result.metric]
        colour = COLOURS[place % len(COLOURS)]
        style = "-" if place < len(COLOURS) else "--"
        axes.plot(
            range(1, len(curve) + 1), curve, style, color=colour, label=f"trial {trial.number}"
        )
        best = float("nan") if trial.value is None else trial.value
        axes.plot([trial.best_epoch or 1], [best], "o", color=colour, markersize=5)
    if trials:
        inner = np.concatenate([t.curve[result.metric] for t in trials])
        _limit(axes, inner, result)
        axes.legend(ncols=2, fontsize=8)
    axes.set(xlabel="epoch", ylabel=_metric(result))
    return figure


def _slice(axes: Axes, field: Field, values: Floats, numbers: NDArray[np.int64]) -> None:
    if field.is_numeric:
        x = field.numbers()
        # Not a number where a head does not have the field.
        known = x[np.isfinite(x)]
        if field.is_log and known.max() >= 10 * known.min():
            axes.set_xscale("log")
            subs = (1.0,) if known.max() >= 100 * known.min() else (1.0, 3.0)
            axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=4))
            axes.xaxis.set_major_formatter(LogFormatterSciNotation(labelOnlyBase=False))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.xaxis.set_major_locator(
                MaxNLocator(4, integer=bool((known == known.round()).all()))
            )
    else:
        places = field.positions() * (len(field.options) - 1)
        # spread, so that equal choices do not hide each other; by number, so always alike
        x = places + (numbers * 0.618034 % 1 - 0.5) * 0.3
        axes.set_xticks(
            range(len(field.options)), [str(v).replace("_", " ") for v in field.options]
        )
    axes.scatter(x, values, c=numbers, cmap=_COLOUR_MAP, s=14, linewidths=0)
    axes.set_title(field.title, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)


def _coordinate_axes(axes: Axes, fields: Sequence[Field], trials: Sequence[TrialResult]) -> None:
    for place, field in enumerate(fields):
        axes.axvline(place, color="#999999", linewidth=0.8, zorder=1)
        for height, text in field.ticks():
            axes.text(
                place + 0.04,
                height,
                text.replace("_", " "),
                fontsize=7,
                va="center",
                zorder=5,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6},
            )
    axes.axvline(len(fields), color="#999999", linewidth=0.8, zorder=1)
    for height, trial in ((0.0, trials[0]), (1.0, trials[-1])):
        axes.text(len(fields) + 0.04, height, f"{trial.value:.3g}", fontsize=7, va="center")
    titles = [*(field.title for field in fields), "value"]
    axes.set_xticks(range(len(titles)), titles, rotation=20, ha="right", fontsize=8)
    axes.set(yticks=[], xlim=(-0.1, len(fields) + 0.5), ylim=(-0.06, 1.06))
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)


def _distribution(field: Field) -> BaseDistribution:
    if not field.is_numeric:
        return CategoricalDistribution(sorted({*field.options, *_defaults(field)}))
    numbers = [float(value) for value in (*field.options, *_defaults(field))]
    # the default may be 0 where the trials' own values are not
    return FloatDistribution(min(numbers), max(numbers), log=field.is_log and min(numbers) > 0)


def _defaults(field: Field) -> tuple[object, ...]:
    """What heads that do not use a field hold there."""
    return (getattr(HeadConfig(), field.name),)


def _limit(axes: Axes, values: Floats, result: StudyResult) -> None:
    """Let the worst tenth of the values leave the picture where they would squeeze the others."""
    if len(values) < 5:
        return
    low, high = np.quantile(values, [0.0, 0.9] if result.direction == "minimize" else [0.1, 1.0])
    room = 0.06 * (high - low)
    if room > 0:
        axes.set_ylim(low - room, high + room)


def _values(trials: Sequence[TrialResult]) -> Floats:
    return np.array([trial.value for trial in trials], np.float64)


def _metric(result: StudyResult) -> str:
    better = "higher" if result.direction == "maximize" else "lower"
    return f"{result.metric.replace('_', ' ')} ({better} is better)"
