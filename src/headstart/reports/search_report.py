"""reports/search/: what a search found, as trials.csv and one self-contained index.html."""

from pathlib import Path
from typing import Any

from headstart.common import files
from headstart.params.search import SearchParams
from headstart.reports import search_plots
from headstart.reports.html import render_page
from headstart.reports.search_fields import Field, varied_fields
from headstart.search.search_heads import StudyResult, TrialResult

_MOST_ROWS = 10


def write_report(folder: Path, result: StudyResult, search: SearchParams) -> None:
    """Write trials.csv and index.html. The bytes depend on the trials alone."""
    table = result.table()
    texts = table.select_dtypes(exclude="number")
    cells = {str(name): texts[name].map(files.as_cell) for name in texts}
    files.write_text(folder / "trials.csv", table.assign(**cells).to_csv(index=False))
    page = render_page("search_report.html.jinja", **_page(result, search))
    files.write_text(folder / "index.html", page)


def _page(result: StudyResult, search: SearchParams) -> dict[str, Any]:
    ranked = result.ranked()
    fields = varied_fields(ranked, search.space)
    states = [trial.state for trial in result.trials]
    return {
        "metric": result.metric.replace("_", " "),
        "lower_is_better": result.direction == "minimize",
        "study": result.study_name,
        "storage": None if search.storage else f".headstart/studies/{result.study_name}.journal",
        "best": result.best,
        "default": next((t for t in result.trials if t.number == 0 and t.value is not None), None),
        "probe": next((t for t in ranked if t.config and t.config.kind == "linear_probe"), None),
        "n_trials": len(result.trials),
        "states": {state: states.count(state) for state in ("COMPLETE", "PRUNED", "FAIL")},
        "n_epochs": sum(len(t.curve.get(result.metric, [])) for t in result.trials),
        "n_fits": search.folds * search.repeats,
        "folds": search.folds,
        "repeats": search.repeats,
        "fields": [field.title for field in fields],
        "rows": [_row(trial, fields, index) for index, trial in enumerate(ranked[:_MOST_ROWS])],
        "failed": [trial for trial in result.trials if trial.state == "FAIL"],
        "history": search_plots.history(result).svg(),
        "importances": search_plots.importances(result, search.space),
        "parallel_coordinates": search_plots.parallel_coordinates(result, search.space),
        "slices": [chart.svg() for chart in search_plots.slices(result, search.space)],
        "learning_curves": search_plots.learning_curves(result).svg(),
    }


def _row(trial: TrialResult, fields: list[Field], index: int) -> dict[str, Any]:
    cells = [field.values[index] for field in fields]
    return {"trial": trial, "cells": ["–" if cell is None else _text(cell) for cell in cells]}


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("_", " ")
