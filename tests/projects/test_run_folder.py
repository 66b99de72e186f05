"""From a wheel and a folder of images to a served model, with nothing of the repository at hand."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import urllib.request
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPOSITORY
from tests.e2e.conftest import Workspace, free_port, server

pytestmark = [pytest.mark.slow, pytest.mark.ci, pytest.mark.timeout(1200)]
_EACH = 24


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the built wheel, and its dependencies from here."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    ignored = shutil.ignore_patterns("*.egg-info", "__pycache__")
    shutil.copytree(REPOSITORY / "src", source / "src", ignore=ignored)
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(REPOSITORY / name, source)
    uv = [sys.executable, "-m", "uv"]
    build = [*uv, "build", "--quiet", "--wheel", "--no-build-isolation", "--python", sys.executable]
    subprocess.run([*build, "--out-dir", str(folder), str(source)], check=True)
    (wheel,) = folder.glob("*.whl")
    shutil.rmtree(source)
    venv.create(folder / "env", symlinks=True)
    python = folder / "env" / "bin" / "python"
    install = [*uv, "pip", "install", "--quiet", "--no-deps", "--python", str(python), str(wheel)]
    subprocess.run(install, check=True)
    # Not the .pth files of this environment: its headstart is the repository's.
    (packages,) = (folder / "env" / "lib").glob("python*/site-packages")
    (packages / "here.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder / "env" / "bin"


def pictures(folder: Path) -> None:
    """Stripes, spots and plain noise, and one of the spots among the stripes."""
    chance = np.random.default_rng(0)
    for name in ("plain", "spots", "stripes"):
        (folder / name).mkdir(parents=True)
        for number in range(_EACH):
            pixels = chance.integers(0, 90, (96, 96, 3), dtype=np.uint8)
            if name == "stripes":
                pixels[:: int(chance.integers(6, 10))] += np.uint8(150)
            if name == "spots":
                for y, x in chance.integers(0, 84, (9, 2)):
                    pixels[y : y + 12, x : x + 12] += np.uint8(150)
            Image.fromarray(pixels).save(folder / name / f"{number}.jpg")
    shutil.move(folder / "spots" / "0.jpg", folder / "stripes" / "odd.jpg")


def with_programs(installed: Path, home: Path) -> tuple[Workspace, dict[str, Any]]:
    path = f"{installed}{os.pathsep}{os.environ['PATH']}"
    return Workspace(home, home / "cache"), {"PATH": path, "HOME": str(home)}


def test_a_wheel_and_a_folder_are_enough(installed: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "own images")
    workspace, env = with_programs(installed, tmp_path)
    said = workspace.run("headstart", "run", "own images", **env)
    assert "Made the project" in said
    assert "Test accuracy   " in said
    assert "stripes/odd.jpg: labelled stripes, predicted spots " in said
    project = tmp_path / "own images-headstart"
    assert f"Page            {project.name}/reports/evaluation/index.html" in said
    assert (project / "reports" / "evaluation" / "index.html").is_file()
    assert f"cd '{project.name}'" in said

    # Again: nothing is computed, and it says the same.
    again = workspace.run("headstart", "run", "own images", **env)
    assert "Resuming" in again
    assert said.partition("Test accuracy")[2] == again.partition("Test accuracy")[2]
    assert "extract   " not in again

    python = str(installed / "python")
    own = Workspace(project, tmp_path / "cache")
    assert "Test accuracy" in own.run("headstart", "summary", **env)
    own.run("git", "commit", "-q", "-m", "a first run", **env)
    own.run(python, "-m", "dvc", "exp", "run", "--temp", "-S", "seed=1", **env)
    shown = json.loads(own.run(python, "-m", "dvc", "exp", "show", "--json", "-A", **env))
    assert any(one.get("experiments") for one in shown)
    url = f"http://127.0.0.1:{free_port()}"
    command = ["headstart", "serve", "--port", url.rpartition(":")[2]]
    with server(own, *command, url=f"{url}/ping", log=tmp_path / "log", **env):
        body = (tmp_path / "own images" / "spots" / "3.jpg").read_bytes()
        headers = {"Content-Type": "image/jpeg"}
        request = urllib.request.Request(f"{url}/invocations", body, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            (row,) = json.load(answer)["predictions"]
        assert row["predicted_label"] == "spots"


def test_a_stage_that_stops_says_why_and_the_same_command_goes_on(
    installed: Path, tmp_path: Path
) -> None:
    pictures(tmp_path / "images")
    shutil.move(tmp_path / "images" / "plain", tmp_path / "plain")
    shutil.move(tmp_path / "images" / "spots", tmp_path / "spots")
    workspace, env = with_programs(installed, tmp_path)
    command = ["headstart", "run", "images", "--project", "project"]
    done = subprocess.run(
        command,
        cwd=tmp_path, env=workspace.environment(**env), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "classes" in done.stderr
    assert "run the same command again: it resumes there" in done.stderr
    assert "Traceback" not in done.stderr
    shutil.move(tmp_path / "plain", tmp_path / "images" / "plain")
    shutil.move(tmp_path / "spots", tmp_path / "images" / "spots")
    assert "Test accuracy" in workspace.run(*command, **env)
