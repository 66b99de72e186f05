"""The leaderboard as a page, in a browser."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headstart.reports.leaderboard_page import leaderboard_page
from headstart.tracking.leaderboard import Leaderboard, RankedRun

_FIRST = RankedRun(
    run_id="a" * 32, name="first · logistic regression", experiment="", version="1",
    accuracy=0.9, log_loss=0.3, test=None, beside_best=(-0.05, -0.08, -0.02, "worse"), differs={},
    head="logistic regression on last", adopt="headstart promote 1", is_here=True, mflops=None,
    model_mb=None, seconds=None,
)  # fmt: skip
_BEST = RankedRun(
    run_id="b" * 32, name="n", experiment="wide-<b>moth", version="2", accuracy=0.95, log_loss=0.2,
    test=(0.94, 0.9, 0.97), beside_best=None, differs={"extract.encoders": "vgg16"},
    head="ridge on all", adopt="dvc exp apply wide-<b>moth", is_here=False, mflops=30_700.0,
    model_mb=59.1, seconds=41.0,
)  # fmt: skip


@pytest.mark.parametrize("width", [1400, 390])
def test_it_names_the_best_what_made_it_and_how_to_adopt_it(
    tmp_path: Path, browser: Any, width: int
) -> None:
    near = replace(
        _BEST, run_id="c" * 32, experiment="", version="3", mflops=768.0, differs={"seed": "1"},
        beside_best=(-0.001, -0.01, 0.01, "undecided"),
    )  # fmt: skip
    path = tmp_path / "page.html"
    path.write_text(leaderboard_page(Leaderboard(_FIRST, [_BEST, near, _FIRST])), "utf-8")
    page = browser.new_page(viewport={"width": width, "height": 900})
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text))
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    said = page.inner_text("main")
    for text in (
        "Best is wide-<b>moth: 95.0 % out of fold.",
        "What made it: extract.encoders=vgg16, in place of the baseline's (version 1)",
        "It gains +5.0 points.",
        "1 other run is not clearly worse. Of these version 3 is the cheapest: 768 in place of",
        "To adopt the best: dvc exp apply wide-<b>moth",
        "in this workspace",
        "-5.0 points (-8.0 to -2.0)",
        "30,700",
    ):
        assert text in said, text
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert errors == []
    assert requests == [path.as_uri()]
    page.close()


def test_one_run_that_is_the_baseline_and_here() -> None:
    only = replace(_FIRST, beside_best=None)
    board = Leaderboard(only, [only])
    assert "no change has gained anything" in " ".join(board.conclusion)
    assert board.adopting == "The best is the model in this workspace."
    assert "Leaderboard of 1 run<" in leaderboard_page(board)
    assert max(map(len, board.as_text().splitlines())) <= 80
