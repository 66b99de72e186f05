"""What git knows of the code that runs: commit, branch, and every byte that differs from HEAD.

Bytes are compared, not time stamps: in the copies that DVC makes for queued and temporary
experiments, git's own index can call an edited file of the same length clean.
"""

import os
import subprocess
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from headstart.common.errors import TrackingError

# Untracked files count as source when they lie here; images and results of others never do.
_SOURCES = ("src", "data/sources", ":(glob)data/*.dvc")
_MAX_UNTRACKED_BYTES = 1_000_000


@dataclass(frozen=True)
class GitState:
    """The code a run was made with. `diff` is a binary git patch against `commit`."""

    commit: str | None
    branch: str | None
    diff: str

    @property
    def is_dirty(self) -> bool:
        return bool(self.diff)


def git_state(root: Path, *, ignoring: Collection[str] = ()) -> GitState:
    """Compare the workspace at `root` with HEAD, leaving out the paths in `ignoring`.

    Outside of a repository, or before the first commit, everything is None and the diff empty.
    """
    commit = _git(root, "rev-parse", "--verify", "-q", "HEAD").strip()
    if not commit:
        return GitState(None, None, "")
    branch = _git(root, "symbolic-ref", "--short", "-q", "HEAD").strip() or None
    return GitState(commit, branch, _diff_with_head(root, ignoring))


def _diff_with_head(root: Path, ignoring: Collection[str]) -> str:
    objects = _git(root, "rev-parse", "--git-path", "objects").strip()
    with tempfile.TemporaryDirectory() as folder:
        # A scratch index and object store: nothing of the user's repository is touched.
        scratch = {
            "GIT_INDEX_FILE": str(Path(folder) / "index"),
            "GIT_OBJECT_DIRECTORY": folder,
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str((root / objects).resolve()),
        }
        _git_must(root, "read-tree", "HEAD", env=scratch)
        _git_must(root, "add", "--update", "--", ".", env=scratch)
        untracked = _untracked_sources(root)
        if untracked:
            _git_must(root, "add", "--", *untracked, env=scratch)
        excluded = [f":(exclude){path}" for path in sorted(ignoring)]
        options = ("--cached", "--binary", "--no-color", "--no-ext-diff", "--no-renames")
        return _git_must(root, "diff", *options, "HEAD", "--", ".", *excluded, env=scratch)


def _untracked_sources(root: Path) -> list[str]:
    listed = _git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *_SOURCES).split(
        "\0"
    )
    return [
        name
        for name in listed
        if name and (root / name).is_file() and (root / name).stat().st_size < _MAX_UNTRACKED_BYTES
    ]


def _git(root: Path, *arguments: str) -> str:
    """Standard output of a question that git may answer with no, as the empty string."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.decode(errors="surrogateescape") if done.returncode == 0 else ""


def _git_must(root: Path, *arguments: str, env: dict[str, str]) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments],
        capture_output=True,
        check=False,
        env={**os.environ, **env},
    )
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        raise TrackingError(
            f"the workspace must be comparable with git's HEAD, but `git {arguments[0]}` failed in "
            f"{root}: {said}: mend the repository, for example with `git status`"
        )
    return done.stdout.decode(errors="surrogateescape")
