"""A secret in every place that one could come from, and none in anything that was logged."""

import functools
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.e2e.conftest import Workspace, free_port, make_workspace, replace, tracking_server

pytestmark = pytest.mark.slow

_SECRETS = {
    "in the address of the source": "hunter-of-the-source",
    "in the query of the source": "hunter-of-the-query",
    "in the address of the server": "hunter-of-the-server",
    "MLFLOW_TRACKING_PASSWORD": "hunter-of-the-password",
    "AWS_SECRET_ACCESS_KEY": "hunter-of-the-cloud",
    "in uncommitted text": "hunter-of-the-cloud",
}
# Files of the user's own, in which the address of the source stands because they wrote it there.
_THEIR_OWN = {"params.yaml", "dvc.lock"}


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def files(tmp_path: Path) -> Iterator[str]:
    """A file server's host and port; it has pictures.zip."""
    folder = tmp_path / "served"
    rng = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(40):
            pixels = rng.integers(0, 120, (32, 32, 3), dtype=np.uint8)
            pixels[..., channel] += 80
            Image.fromarray(pixels).save(folder / "pictures" / name / f"{number}.png")
    subprocess.run(
        ["python3", "-m", "zipfile", "-c", "pictures.zip", "pictures/"], cwd=folder, check=True
    )
    handler = functools.partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as listener:
        thread = threading.Thread(target=listener.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.server_port}"
        listener.shutdown()


def _with_secrets(folder: Path, leave_out: set[str]) -> list[str]:
    """Files below a folder that hold one of the secrets."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in leave_out):
        content = path.read_bytes()
        found += [f"{path}: {s}" for s in set(_SECRETS.values()) if s.encode() in content]
    return found


def test_nothing_that_is_logged_holds_a_secret(files: str, tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "headstart", tmp_path / "cache")
    source = f"http://me:{_SECRETS['in the address of the source']}@{files}/pictures.zip"
    source += f"?token={_SECRETS['in the query of the source']}"
    replace(workspace.root / "params.yaml", "data/sources/animal-silhouettes.yaml", source)
    text = workspace.root / "CONTRIBUTING.md"
    text.write_text(text.read_text() + _SECRETS["in uncommitted text"])
    kept = tmp_path / "server"
    with tracking_server(workspace, kept) as address:
        uri = f"http://me:{_SECRETS['in the address of the server']}@{address}"
        said = workspace.run(
            "dvc",
            "repro",
            MLFLOW_TRACKING_URI=uri,
            MLFLOW_TRACKING_USERNAME="me",
            MLFLOW_TRACKING_PASSWORD=_SECRETS["MLFLOW_TRACKING_PASSWORD"],
            AWS_SECRET_ACCESS_KEY=_SECRETS["AWS_SECRET_ACCESS_KEY"],
        )
    assert "hunter" not in said
    assert any((kept / "artifacts").rglob("model.h5"))
    assert _with_secrets(kept, set()) == []
    for name in (".headstart", "reports", "models", "data"):
        assert _with_secrets(workspace.root / name, _THEIR_OWN) == []
    _store_that_is_away(workspace)


def _store_that_is_away(workspace: Workspace) -> None:
    secret = _SECRETS["in the address of the server"]
    uri = f"http://me:{secret}@127.0.0.1:{free_port()}"
    done = subprocess.run(
        ["dvc", "repro", "--force", "--single-item", "search"],
        cwd=workspace.root,
        env=workspace.environment(MLFLOW_TRACKING_URI=uri),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "the tracking store must answer, but http://127.0.0.1" in said
    assert "hunter" not in said, os.linesep.join(said.splitlines()[-20:])
