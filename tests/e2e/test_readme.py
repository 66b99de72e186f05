"""The README's commands, as a new user would type them."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from tests.e2e.conftest import (
    REPOSITORY,
    Workspace,
    console,
    free_port,
    make_workspace,
    section,
    server,
)

pytestmark = pytest.mark.slow

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def _console(heading: str) -> str:
    """The commands of the first console block under a heading."""
    return console(section(README, heading).split("\n```\n")[0] + "\n```\n")


@pytest.fixture(scope="module")
def own_images(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace in which the README's way of own images was followed."""
    base = tmp_path_factory.mktemp("readme")
    workspace = make_workspace(base / "headstart", base / "cache")
    rng = np.random.default_rng(0)
    for name, channel in (("rot", 0), ("grün", 1), ("blue sky", 2)):
        folder = base / "home" / "pictures" / name
        folder.mkdir(parents=True)
        for number in range(60):
            pixels = rng.integers(0, 90, (40, 50, 3), dtype=np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(folder / f"{number}.jpg")
    workspace.run(
        "bash", "-euc", _console("Your own images in this checkout"), HOME=str(base / "home")
    )
    return workspace


def test_a_folder_becomes_a_project_beside_it(own_images: Workspace) -> None:
    home = own_images.cache.parent / "home"
    said = own_images.run("bash", "-euc", _console("A folder of images"), HOME=str(home))
    assert "Test accuracy" in said
    assert (home / "pictures-headstart" / "models" / "serving" / "MLmodel").is_file()


def test_own_images_become_a_model(own_images: Workspace) -> None:
    metrics = json.loads((own_images.root / "reports/metrics.json").read_text())
    assert metrics["accuracy"] > 0.9
    assert (own_images.root / "data" / "own.dvc").is_file()
    pictures = own_images.cache.parent / "home" / "pictures"
    assert len(list(pictures.rglob("*.jpg"))) == 180
    status = own_images.run("git", "status", "--porcelain", "--untracked-files=all")
    assert "data/own/" not in status


def test_the_served_model_answers_curl(own_images: Workspace, tmp_path: Path) -> None:
    port = str(free_port())
    serve, curl = _console("Ask the served model").split("\n", 1)
    image = next((own_images.root / "data" / "own" / "grün").iterdir())
    # As large as a camera's: more than a command line can hold.
    photo = own_images.root / "photo.jpg"
    Image.open(image).resize((1600, 1200)).save(photo, quality=95)
    assert photo.stat().st_size > 200_000
    command = ["bash", "-c", f"exec {serve.replace('5001', port)}"]
    url = f"http://127.0.0.1:{port}/ping"
    with server(own_images, *command, url=url, log=tmp_path / "log"):
        said = own_images.run("bash", "-euc", curl.replace("5001", port))
    assert '"predicted_label": "gr\\u00fcn"' in said or '"predicted_label": "grün"' in said


def test_the_mlflow_project_trains_on_what_params_yaml_says(own_images: Workspace) -> None:
    own_images.run("bash", "-euc", _console("As an MLflow project"))
    client = MlflowClient(own_images.tracking_uri)
    (run,) = client.search_runs(["0"], order_by=["attributes.start_time DESC"], max_results=1)
    assert run.data.params["data.source"] == "data/own"
    assert run.data.params["train.learning_rate"] == "0.001"
    assert run.data.params["seed"] == "0"


def test_served_without_a_tracking_database(own_images: Workspace, tmp_path: Path) -> None:
    """After `dvc push`, `dvc pull` in a clone: nothing runs, and models/serving answers."""
    remote, clone = tmp_path / "remote", Workspace(tmp_path / "clone", tmp_path / "cache")
    own_images.run("dvc", "remote", "add", "-f", "-d", "store", str(remote))
    own_images.run("git", "add", "-A", ":!photo.jpg")
    own_images.run("git", "commit", "-q", "-m", "the lock")
    own_images.run("dvc", "push", "-q")
    own_images.run("git", "clone", "-q", str(own_images.root), str(clone.root))
    clone.run("dvc", "pull", "-q")
    assert "Running stage" not in clone.run("dvc", "repro")
    done = subprocess.run(
        ["headstart", "doctor"], cwd=clone.root, env=clone.environment(), check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "models/serving` works without it" in done.stdout
    port = str(free_port())
    serve = ["mlflow", "models", "serve", "-m", "models/serving", "--env-manager", "local"]
    url = f"http://127.0.0.1:{port}/ping"
    with server(clone, *serve, "-p", port, url=url, log=tmp_path / "log"):
        assert (clone.root / "models" / "serving" / "MLmodel").is_file()
