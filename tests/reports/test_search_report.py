"""reports/search/: its plots and its page, from trials made by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from headstart.heads.config import HeadConfig
from headstart.params.search import SearchParams
from headstart.reports.search_report import importances, write_search_report
from headstart.search.results import StudyResult, TrialResult
from headstart.search.selection import Corrected

TOPIC = {"folds": 1}
SEARCH = SearchParams.model_validate(
    {
        "folds": 1,
        "default_head": {"kind": "network", "label_smoothing": 0.05},
        "space": {
            "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
            "label_smoothing": {"low": 0.001, "high": 0.2, "log": True},
            "width": {"choices": [64, 128]},
            "activation": {"choices": ["relu", "gelu"]},
        },
    }
)


def _trial(number: int, config: HeadConfig, value: float, state: str = "COMPLETE") -> TrialResult:
    curve = [value + 0.5, value] if config.kind == "network" else [value]
    return TrialResult(
        number=number,
        state=state,
        config=config,
        value=value if state == "COMPLETE" else None,
        value_std=0.0,
        best_epoch=len(curve),
        curve={"log_loss": curve, "accuracy": [0.5] * len(curve)},
        reason="its worker died" if state == "FAIL" else "",
        reused_from="",
    )


@pytest.fixture
def result() -> StudyResult:
    """Networks of which the rate decides nearly all; a probe and a trial that failed."""
    chance = np.random.default_rng(0)
    trials = []
    for number in range(24):
        config = HeadConfig(
            learning_rate=float(10 ** chance.uniform(-4, -1)),
            label_smoothing=float(10 ** chance.uniform(-3, -0.7)),
            width=int(chance.choice([64, 128])),
            activation=("relu", "gelu")[number % 2],
        )
        value = -np.log10(config.learning_rate) + 0.01 * config.label_smoothing
        trials.append(_trial(number, config, float(value)))
    trials.append(_trial(24, HeadConfig(kind="logistic_regression"), 0.75))
    trials.append(_trial(25, HeadConfig(width=64), 9.0, state="FAIL"))
    return StudyResult(
        "heads-1",
        "sqlite:///x.db",
        "log_loss",
        "minimize",
        64,
        TOPIC,
        tuple(trials),
        Corrected(0.8, 0.01),
    )


def test_importances_name_what_decides(result: StudyResult) -> None:
    found = importances(result, SEARCH.space)
    assert set(found) == {"learning_rate", "label_smoothing", "width", "activation"}
    assert max(found, key=lambda name: found[name]) == "learning_rate"
    assert sum(found.values()) == pytest.approx(1)
    assert found == importances(result, SEARCH.space)


def test_too_few_networks_tell_nothing(result: StudyResult) -> None:
    few = StudyResult("heads-1", "x", "log_loss", "minimize", 64, TOPIC, result.trials[:7])
    assert importances(few, SEARCH.space) == {}


def test_the_page_says_what_was_found(result: StudyResult, tmp_path: Path) -> None:
    write_search_report(tmp_path, result, SEARCH)
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "trials.csv"}
    assert len(pd.read_csv(tmp_path / "trials.csv")) == 26
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    best = result.best
    assert f"{best.value:.4f}" in page
    assert f"best log loss, trial {best.number}" in page
    assert "0.8000" in page
    assert "expected on new images" in page
    assert "its worker died" in page
    assert "on the validation split" in page
    assert "optuna-dashboard sqlite:///.headstart/studies/optuna.db" in page
    for chart in ("best so far", "learning rate</text>", "label smoothing</text>", "parallel"):
        assert chart in page
    assert page.count('role="img"') == 3 + 5
    assert "http://" not in page.replace("http://www.w3.org", "")
    before = (tmp_path / "index.html").read_bytes()
    write_search_report(tmp_path, result, SEARCH)
    assert (tmp_path / "index.html").read_bytes() == before


def test_a_page_of_three_trials_says_what_they_cannot_tell(
    result: StudyResult, tmp_path: Path
) -> None:
    few = StudyResult("heads-1", "x", "log_loss", "minimize", 64, TOPIC, result.trials[:3])
    write_search_report(tmp_path, few, SEARCH)
    assert "Too few networks completed to tell." in (tmp_path / "index.html").read_text("utf-8")


def test_the_page_shows_accuracy_against_cost(tmp_path: Path) -> None:
    costs = {"all": 800.0, "last": 790.0, "block14_add": 400.0, "block10_add": 200.0}
    values = {"all": 0.3, "last": 0.4, "block14_add": 0.35, "block10_add": 0.6}
    trials = tuple(
        replace(
            _trial(number, HeadConfig(kind="ridge", layers=layers), values[layers]),
            mflops=cost,
            model_mb=cost / 100,
        )
        for number, (layers, cost) in enumerate(costs.items())
    )
    solved = StudyResult("heads-1", "x", "log_loss", "minimize", 64, TOPIC, trials)
    write_search_report(tmp_path, solved, SEARCH)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    front = page.split("<h2>Log loss against cost</h2>")[1].split("</table>")[0]
    assert [
        name
        for name in ("all", "block14_add", "block10_add", "last")
        if f"<td>{name}</td>" in front
    ] == [
        "all",
        "block14_add",
        "block10_add",
    ]
    assert '<td class="number">400.0</td><td class="number">4.00</td>' in front
    assert "MFLOPs per image</text>" in front
    assert list(pd.read_csv(tmp_path / "trials.csv")["mflops"]) == list(costs.values())


def test_a_page_without_networks_says_nothing_of_epochs(tmp_path: Path) -> None:
    layers = ["all", "last", "head_relu+block14_add"]
    trials = tuple(
        _trial(number, HeadConfig(kind="ridge", layers=name), 0.5 + number)
        for number, name in enumerate(layers)
    )
    corrected = Corrected(0.55, 0.0)
    solved = StudyResult("heads-1", "x", "log_loss", "minimize", 64, TOPIC, trials, corrected)
    write_search_report(tmp_path, solved, SEARCH)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<td>head_relu + block14_add</td>" in page
    assert "0.5500" in page
    for text in ("epoch", "Parallel coordinates", "importance", "Learning curves"):
        assert text not in page


def test_no_reason_runs_in_a_spreadsheet(result: StudyResult, tmp_path: Path) -> None:
    bad = replace(result.trials[25], reason="=1+1", reused_from="@x/1")
    write_search_report(tmp_path, replace(result, trials=(*result.trials[:25], bad)), SEARCH)
    text = (tmp_path / "trials.csv").read_text(encoding="utf-8")
    assert "'=1+1" in text
    assert ",=1+1" not in text
    assert ",@x" not in text
