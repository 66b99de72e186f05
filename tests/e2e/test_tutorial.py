"""docs/tutorial.md, typed from its first command to its last; and its notebook.

With HEADSTART_SCREENSHOTS=1 the tutorial's pictures in docs/images/ are made anew.
"""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from PIL import Image

from tests.e2e.conftest import REPOSITORY, Workspace, console, free_port, section, server
from tests.encoders.package_index import needs_package_index

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

TUTORIAL = (REPOSITORY / "docs" / "tutorial.md").read_text(encoding="utf-8")
NOTEBOOK = REPOSITORY / "docs" / "notebook.ipynb"
RUN = ("2. Take images", "3. Run")
CORRECT, TRY, COMPARE, SERVE = (
    "5. Correct labels", "6. Try something", "7. Compare in MLflow", "8. Serve",
)  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tutorial")


@pytest.fixture(scope="module")
def pictured(home: Path) -> Path:
    """Where pictures go."""
    if os.environ.get("HEADSTART_SCREENSHOTS") == "1":
        return REPOSITORY / "docs" / "images"
    return home


@pytest.fixture(scope="module")
def first_run(home: Path) -> str:
    """What the first run of the tutorial said."""
    clone = Workspace(REPOSITORY, home / "cache")
    commands = "\n".join(console(section(TUTORIAL, one)) for one in RUN)
    return clone.run("bash", "-euc", commands, HOME=str(home))


@pytest.fixture(scope="module")
def project(home: Path, first_run: str) -> Workspace:
    assert "Test accuracy" in first_run
    return Workspace(home / "shapes-headstart", home / "cache")


def test_every_command_is_run_here() -> None:
    headings = [line[3:] for line in TUTORIAL.splitlines() if line.startswith("## ")]
    with_commands = [one for one in headings if "```console" in section(TUTORIAL, one)]
    # `make setup` is what these tests run in.
    assert with_commands == ["1. Install", *RUN, CORRECT, TRY, COMPARE, SERVE]


def test_the_first_run_names_the_wrong_labels(first_run: str, home: Path, pictured: Path) -> None:
    assert "circle/IMG_0417.jpg: labelled circle, predicted triangle" in first_run
    assert "square/from-the-web.jpg: labelled square, predicted star" in first_run
    assert "1 rejected" in first_run
    sheet = Image.new("RGB", (10 * 90 - 10, 2 * 90 - 10), "white")
    for column, shape in enumerate(sorted(path.name for path in (home / "shapes").iterdir())):
        for number in range(4):
            image = Image.open(home / "shapes" / shape / f"1{number}.jpg").resize((80, 80))
            sheet.paste(image, (90 * (2 * column + number % 2), 90 * (number // 2)))
    sheet.save(pictured / "tutorial-pictures.webp", quality=80)


def test_the_page_is_as_pictured(project: Workspace, browser: Any, pictured: Path) -> None:
    page = browser.new_page(viewport={"width": 1100, "height": 1000})
    page.goto((project.root / "reports" / "evaluation" / "index.html").as_uri())
    page.get_by_text("Worst errors").first.wait_for()
    assert page.locator("img").count() > 0
    _take(page, pictured / "tutorial-page.webp")
    page.close()


def test_corrected_labels_cost_no_extraction(project: Workspace, home: Path) -> None:
    clone = Workspace(REPOSITORY, home / "cache")
    said = clone.run("bash", "-euc", console(section(TUTORIAL, CORRECT)), HOME=str(home))
    assert " 0 rows extracted" in said
    assert "IMG_0417.jpg: labelled" not in said
    assert (project.root / "reports" / "rejected.csv").read_text().count("\n") == 1


def test_an_experiment_is_ranked_and_adopted(project: Workspace, home: Path) -> None:
    needs_package_index()
    said = project.run("bash", "-euc", console(section(TUTORIAL, TRY)), HOME=str(home))
    assert "dvc exp apply two-encoders" in said
    params = (project.root / "params.yaml").read_text(encoding="utf-8")
    assert "efficientnet-lite2" in params


def test_mlflow_lists_the_runs(
    project: Workspace, browser: Any, pictured: Path, tmp_path: Path
) -> None:
    port = str(free_port())
    url = f"http://127.0.0.1:{port}"
    command = console(section(TUTORIAL, COMPARE)).split("#")[0].split()
    experiment = MlflowClient(project.tracking_uri).get_experiment_by_name("headstart")
    assert experiment is not None
    path = f"experiments/{experiment.experiment_id}/runs?workflowType=machine_learning"
    with server(project, *command, "--port", port, url=f"{url}/health", log=tmp_path / "log"):
        page = browser.new_page(viewport={"width": 1300, "height": 620})
        page.goto(f"{url}/#/{path}")
        page.get_by_text("shapes").first.wait_for(timeout=120_000)
        page.wait_for_timeout(1500)
        _take(page, pictured / "tutorial-mlflow.webp", width=960)
        page.close()


def test_the_served_model_answers(project: Workspace, home: Path, tmp_path: Path) -> None:
    serve, curl = console(section(TUTORIAL, SERVE)).split("\n")
    port = str(free_port())
    command = [*serve.split("#")[0].split(), "--port", port]
    url = f"http://127.0.0.1:{port}/ping"
    with server(project, *command, url=url, log=tmp_path / "log"):
        said = project.run("bash", "-euc", curl.replace("5001", port), HOME=str(home))
    assert '"novelty"' in said
    answer = json.loads(said[said.index("{") : said.rindex("}") + 1])
    assert answer["predictions"][0]["predicted_label"] == "star"


def _take(page: Any, path: Path, *, width: int = 1100) -> None:
    """Keep the page's left part as a picture: what MLflow shows beside its tables is not ours."""
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    image.crop((0, 0, min(image.width, width), image.height)).save(path, quality=75, method=6)


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    code = "\n\n".join(sources) + "\n\nassert list(answers.predicted_label) == ['spots', 'stripes']"
    environment = Workspace(tmp_path, tmp_path / "cache").environment(TMPDIR=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout
