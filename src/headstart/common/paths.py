"""Where things are: the project's files, the main checkout's state, the feature cache.

Files are found by the working directory (a queued or temporary DVC experiment runs in a copy of
the workspace); state that outlives a workspace is found by the main checkout.
"""

import contextlib
import os
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import platformdirs


@dataclass(frozen=True)
class Project:
    """The files of one workspace. Every path that a stage reads or writes is named here."""

    root: Path

    @property
    def params(self) -> Path:
        return self.root / "params.yaml"

    @property
    def dvc_yaml(self) -> Path:
        return self.root / "dvc.yaml"

    @property
    def dvc_lock(self) -> Path:
        return self.root / "dvc.lock"

    @property
    def fetched(self) -> Path:
        return self.root / "data" / "fetched"

    @property
    def manifest(self) -> Path:
        return self.root / "data" / "manifest.csv"

    @property
    def splits(self) -> Path:
        return self.root / "data" / "splits.csv"

    @property
    def rejected(self) -> Path:
        return self.root / "reports" / "rejected.csv"

    @property
    def data_report(self) -> Path:
        return self.root / "reports" / "data"

    @property
    def images(self) -> Path:
        return self.root / "data" / "images.h5"

    @property
    def features(self) -> Path:
        return self.root / "data" / "features.h5"

    @property
    def encoder(self) -> Path:
        return self.root / "models" / "backbone.h5"

    @property
    def best_head(self) -> Path:
        return self.root / "data" / "best_head.json"

    @property
    def search_report(self) -> Path:
        return self.root / "reports" / "search"

    @property
    def model(self) -> Path:
        return self.root / "models" / "model.h5"

    @property
    def run(self) -> Path:
        return self.root / "models" / "run.json"

    @property
    def serving(self) -> Path:
        return self.root / "models" / "serving"

    @property
    def training_report(self) -> Path:
        return self.root / "reports" / "train"

    @property
    def out_of_fold(self) -> Path:
        return self.root / "reports" / "out_of_fold.csv"

    @property
    def plots(self) -> Path:
        return self.root / "reports" / "plots"

    @property
    def metrics(self) -> Path:
        return self.root / "reports" / "metrics.json"

    @property
    def model_card(self) -> Path:
        return self.root / "reports" / "model_card.md"

    @property
    def evaluation_report(self) -> Path:
        return self.root / "reports" / "evaluation"

    @property
    def predictions(self) -> Path:
        return self.root / "reports" / "predictions.csv"

    @property
    def comparison(self) -> Path:
        return self.root / "reports" / "comparison.json"

    @property
    def registration(self) -> Path:
        return self.root / "reports" / "registration.json"


def project() -> Project:
    """The workspace of the working directory: the nearest folder upwards that holds a dvc.yaml."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file():
            return Project(folder)
    return Project(here)


def main_checkout(root: Path) -> Path:
    """The checkout whose state (`mlflow.db`, `.headstart/`) the workspace at `root` shares.

    DVC sets DVC_ROOT to the main checkout for experiments that run in a copy; a git worktree is
    followed to its main checkout through git's common directory.
    """
    start = Path(os.environ.get("DVC_ROOT") or root)
    return _main_worktree(start.resolve())


@cache
def _main_worktree(start: Path) -> Path:
    command = ["git", "-C", str(start), "rev-parse", "--path-format=absolute", "--git-common-dir"]
    try:
        answer = subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return start
    common = Path(os.fsdecode(answer.stdout.removesuffix(b"\n")))
    return common.parent if common.name == ".git" else start


def sqlite_uri(path: Path) -> str:
    """Return the URI of a SQLite database, whatever characters its path has."""
    # SQLAlchemy unquotes the path, and takes what follows a question mark as a query.
    quoted = str(path).replace("%", "%25").replace("?", "%3F")
    # For `sqlite:///` MLflow makes a folder of the quoted name, beside the one that is meant.
    return f"sqlite:///{path}" if quoted == str(path) else f"sqlite+pysqlite:///{quoted}"


def state_folder(root: Path) -> Path:
    """`.headstart/` of the main checkout: studies, checkpoints, timings. Never a DVC output.

    It is made if it is not there, readable for its owner alone: runs that wait to be sent hold
    predictions and code. HEADSTART_STATE names another folder, so that a run can be made again
    from nothing.
    """
    chosen = os.environ.get("HEADSTART_STATE")
    folder = Path(chosen).resolve() if chosen else main_checkout(root) / ".headstart"
    # Where it cannot be made, who writes there says so; who only reads finds nothing.
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def cache_folder() -> Path:
    """Where extracted features are kept across workspaces, clones and experiments.

    `HEADSTART_CACHE` when set, else the user's cache folder by the platform's convention. Made when
    missing, for its owner alone: what is in it tells of their images.
    """
    folder = _cache_folder()
    # A named folder that is there keeps its mode: it may be shared. One that cannot be made is told
    # of by who writes into it.
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.environ.get("HEADSTART_CACHE"):
            folder.chmod(0o700)
    return folder


def _cache_folder() -> Path:
    chosen = os.environ.get("HEADSTART_CACHE")
    if chosen:
        return Path(chosen).expanduser().resolve()
    return platformdirs.user_cache_path("headstart", appauthor=False)
