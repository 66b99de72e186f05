"""The real `mlflow ui` in a real browser: what a person sees of runs, trials, reports and models.

With HEADSTART_SCREENSHOTS=1 the pages' pictures in docs/images/ are made anew.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from mlflow import MlflowClient

from headstart.tracking import run_view
from tests.e2e.conftest import REPOSITORY, free_port, make_workspace, replace, server

pytestmark = pytest.mark.slow
_RUNS = "experiments/{}/runs?workflowType=machine_learning"


@dataclass(frozen=True)
class Pages:
    """A running `mlflow ui`, and what there is to look at."""

    url: str
    browser: Any
    folder: Path
    experiment: str
    models: list[str]
    trials: list[str]

    def open(self, path: str, name: str, *texts: str) -> Any:
        """Open a page, wait until it shows all the texts, and take its picture."""
        page = self.browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(f"{self.url}/#/{path}")
        for text in texts:
            page.get_by_text(text).first.wait_for(timeout=60_000)
        page.wait_for_timeout(1500)
        page.screenshot(path=str(self.folder / f"mlflow-{name}.png"))
        return page


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Iterator[Pages]:
    """Two runs of one study with its trials, in a workspace of its own."""
    base = tmp_path_factory.mktemp("ui")
    workspace = make_workspace(base / "headstart", base / "cache")
    workspace.run("dvc", "repro")
    replace(workspace.root / "params.yaml", "n_bootstrap: 2000", "n_bootstrap: 1000")
    replace(workspace.root / "params.yaml", "  learning_rate: null", "  learning_rate: 0.003")
    workspace.run("dvc", "repro")
    client = MlflowClient(workspace.tracking_uri)
    experiment = client.get_experiment_by_name("headstart")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    kinds: dict[str, list[str]] = {"model": [], "study": [], "trial": []}
    for run in runs:
        kinds[run.data.tags["headstart.kind"]].append(run.info.run_id)
    folder = base / "pictures"
    if os.environ.get("HEADSTART_SCREENSHOTS") == "1":
        folder = REPOSITORY / "docs" / "images"
    folder.mkdir(exist_ok=True)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = ["mlflow", "ui", "-w", "1", "--port", str(port)]
    with server(workspace, *command, url=f"{url}/health", log=base / "log"):
        yield Pages(url, browser, folder, experiment.experiment_id, kinds["model"], kinds["trial"])


def test_the_experiment_lists_runs_by_names_one_can_read(pages: Pages) -> None:
    page = pages.open(_RUNS.format(pages.experiment), "experiment", "animal-silhouettes")
    assert page.get_by_text("n_trials=6 · animal").count() >= 2
    page.close()


def test_the_saved_view_lists_models_by_accuracy_with_what_matters(pages: Pages) -> None:
    address = run_view.view_path(pages.experiment).removeprefix("/#/")
    page = pages.open(address, "models", "Models, the best first", "animal-silhouettes")
    page.locator("[col-id='params.`head.kind`']").first.wait_for(state="attached")
    heads = page.locator(".ag-header-cell")
    names = [heads.nth(i).get_attribute("col-id") for i in range(heads.count())]
    shown = [name for name in names if name.startswith(("metrics.", "params."))]
    assert shown[:3] == ["metrics.`val_accuracy`", "metrics.`val_log_loss`",
                         "metrics.`test_accuracy`"]  # fmt: skip
    assert page.get_by_text("trial 0").count() == 0
    assert f"{len(pages.models)} matching runs" in page.inner_text("body")
    page.close()


def test_two_runs_are_compared(pages: Pages) -> None:
    path = _compared(pages, pages.models)
    page = pages.open(path, "compare", "Comparing 2 Runs")
    text = page.inner_text("body")
    assert "train.learning_rate" in text
    assert "test_accuracy" in text
    page.close()


def test_trials_in_parallel_coordinates(pages: Pages) -> None:
    path = _compared(pages, pages.trials)
    page = pages.open(path, "parallel-coordinates", f"Comparing {len(pages.trials)} Runs")
    page.get_by_text("Parallel Coordinates Plot").first.wait_for()
    plot = page.locator(".parcoords, svg.main-svg").first
    plot.wait_for(timeout=60_000)
    assert plot.is_visible()
    page.close()


def test_the_report_among_the_artifacts(pages: Pages) -> None:
    path = f"experiments/{pages.experiment}/runs/{pages.models[0]}/artifacts"
    page = pages.open(f"{path}/evaluation/index.html", "report", "index.html")
    frame = page.frame_locator("iframe").first
    frame.get_by_text("Worst errors").first.wait_for(timeout=60_000)
    assert "How good is this model?" in frame.locator("body").inner_text()
    assert frame.locator("img").count() > 5
    # Where this machine keeps its temporary files is no part of the picture.
    page.get_by_text("Path:").first.evaluate("e => e.style.visibility = 'hidden'")
    page.screenshot(path=str(pages.folder / "mlflow-report.png"))
    page.close()


def test_the_registered_model(pages: Pages) -> None:
    page = pages.open("models/headstart", "model", "champion")
    assert "Version 1" in page.inner_text("body")
    page.close()


def _compared(pages: Pages, runs: list[str]) -> str:
    listed = quote(json.dumps(runs))
    return f"compare-runs?runs={listed}&experiments={quote(json.dumps([pages.experiment]))}"
