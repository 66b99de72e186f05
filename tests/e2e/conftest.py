"""Real workspaces, driven by the real tools: git, DVC, MLflow, Optuna."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from headstart.common.paths import sqlite_uri

REPOSITORY = Path(__file__).resolve().parent.parent.parent
_IDENTITY = {
    "GIT_AUTHOR_NAME": "t",
    "GIT_AUTHOR_EMAIL": "t@example.invalid",
    "GIT_COMMITTER_NAME": "t",
    "GIT_COMMITTER_EMAIL": "t@example.invalid",
}
_NOT_INHERITED = ("MLFLOW_", "DVC_", "PYTHONPATH", "HEADSTART_")
# Small enough for the suite, large enough that every class is in every split.
IMAGES_PER_CLASS = 60
# It means something else in an address, and in a shell.
UNUSUAL_NAME = "my café #1 50%20?x"
TRIALS = 6


@dataclass(frozen=True)
class Workspace:
    """A copy of this checkout as a git repository of its own, with its own caches."""

    root: Path
    cache: Path

    def environment(self, **more: str) -> dict[str, str]:
        """The caller's environment without what would lead out of the workspace."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(_NOT_INHERITED)}
        binaries = Path(sys.executable).parent
        own = {
            "PATH": f"{binaries}{os.pathsep}{kept['PATH']}",
            "HEADSTART_CACHE": str(self.cache),
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        return {**kept, **_IDENTITY, **own, **more}

    def run(self, *command: str, cwd: Path | None = None, **env: str) -> str:
        """Run a command that must succeed; returns what it printed."""
        done = subprocess.run(
            command,
            cwd=cwd or self.root,
            env=self.environment(**env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=900,
        )
        assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout}"
        return done.stdout

    def start(self, *command: str, log: Path, **env: str) -> "subprocess.Popen[bytes]":
        """Start a command in a process group of its own."""
        with log.open("wb") as stream:
            return subprocess.Popen(
                command,
                cwd=self.root,
                env=self.environment(**env),
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def tracking_uri(self) -> str:
        return sqlite_uri(self.root / "mlflow.db")


def make_workspace(root: Path, cache: Path, *, small: bool = True) -> Workspace:
    """Copy what git tracks or would track into `root`, and commit it."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    for name in filter(None, listed):
        if (REPOSITORY / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, root / name)
    (root / "dvc.lock").unlink(missing_ok=True)
    workspace = Workspace(root, cache)
    if small:
        replace(root / "data/sources/animal-silhouettes.yaml", "images_per_class: 150",
                f"images_per_class: {IMAGES_PER_CLASS}")  # fmt: skip
        replace(root / "params.yaml", "n_trials: 32", f"n_trials: {TRIALS}")
    workspace.run("git", "init", "-q", "-b", "main")
    workspace.run("git", "add", "-A")
    workspace.run("git", "commit", "-q", "-m", "the project")
    return workspace


def replace(path: Path, old: str, new: str) -> None:
    """Replace text that must be there."""
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{old!r} is not in {path}"
    path.write_text(text.replace(old, new), encoding="utf-8")


def console(text: str) -> str:
    """The commands of the console blocks in Markdown, as a shell script."""
    script = []
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        lines = block.splitlines()
        for position, line in enumerate(lines):
            if line.startswith("$ "):
                script.append(line[2:])
            elif position and lines[position - 1].endswith("\\"):
                script.append(line)
    return "\n".join(script)


def section(text: str, heading: str) -> str:
    """What stands under a heading of the second level in Markdown."""
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def server(workspace: Workspace, *command: str, url: str, log: Path, **env: str) -> Iterator[None]:
    """Run a server until the block ends; wait until `url` answers."""
    process = workspace.start(*command, log=log, **env)
    try:
        for _ in range(240):
            if process.poll() is not None:
                break
            try:
                urllib.request.urlopen(url, timeout=2).close()
                yield
                return
            except OSError:
                time.sleep(0.5)
        raise AssertionError(f"{command[0]} did not answer at {url}:\n{log.read_text()}")
    finally:
        # One that could not start has ended.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def tracking_server(workspace: Workspace, folder: Path) -> Iterator[str]:
    """A real `mlflow server` that keeps everything in `folder`; yields its host and port."""
    folder.mkdir()
    address = f"127.0.0.1:{free_port()}"
    host, _, port = address.partition(":")
    command = ["mlflow", "server", "--host", host, "--port", port, "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with server(workspace, *command, url=f"http://{address}/health", log=folder / "log"):
        yield address


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace in which `dvc repro` has run once, from nothing, in a folder of any name."""
    base = tmp_path_factory.mktemp("reproduced")
    workspace = make_workspace(base / UNUSUAL_NAME, base / "cache")
    workspace.run("dvc", "repro")
    return workspace
