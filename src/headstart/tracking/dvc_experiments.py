"""DVC's experiments and cache: which run each commit is of, and what nothing refers to any more."""

import contextlib
import re
import subprocess
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from headstart.common import files
from headstart.common.errors import TrackingError, one_line

_EXPERIMENT = re.compile(r"refs/exps/([0-9a-f]{2}/[0-9a-f]{38})/([^/]+)")
_OTHER_REFS = ("refs/heads", "refs/tags", "refs/remotes", "refs/stash")
_RUN = "models/run.json"
_PID = re.compile(r'"pid": *(\d+)')


@dataclass(frozen=True)
class RefRun:
    """A git reference and the run that its models/run.json names, None where that is unknown.

    Attributes:
        experiment: the name of DVC's experiment; empty for a branch, a tag, HEAD or a stash.
    """

    ref: str
    experiment: str
    run_id: str | None


@dataclass(frozen=True)
class UnusedObject:
    """A file of DVC's cache that nothing refers to; `n_bytes` is what removing it frees."""

    path: Path
    n_bytes: int


def is_dvc_repository(root: Path) -> bool:
    """Return whether `root` is a DVC repository in git, be it in a folder of that."""
    return (root / ".dvc").is_dir() and bool(_git(root, "rev-parse", "--git-dir"))


def worktrees(root: Path) -> list[Path]:
    """Return where the project lies in each worktree of git, the main one first; else `root`."""
    prefix = _git(root, "rev-parse", "--show-prefix").strip()
    listed = _git(root, "worktree", "list", "--porcelain", "-z").split("\0")
    found = [Path(line.removeprefix("worktree ")) for line in listed if line[:9] == "worktree "]
    return [folder / prefix for folder in found if (folder / prefix).is_dir()] or [root]


def has_commit(root: Path, commit: str) -> bool:
    """Return whether the repository has a commit, reachable from a branch or not."""
    return bool(_git(root, "rev-parse", "--verify", "-q", f"{commit}^{{commit}}"))


def experiment_names(root: Path) -> set[str]:
    """Return the names of DVC's experiments."""
    refs = _git(root, "for-each-ref", "--format=%(refname)", "refs/exps").split()
    return {match.group(2) for match in map(_EXPERIMENT.fullmatch, refs) if match}


def runs_of_refs(root: Path) -> list[RefRun]:
    """Return what branches, tags, HEAD, stashes and DVC experiments name as their run."""
    listed = _git(root, "for-each-ref", "--format=%(refname)", "refs/exps", *_OTHER_REFS)
    refs = [(ref, _EXPERIMENT.fullmatch(ref)) for ref in ["HEAD", *listed.split()]]
    # DVC keeps notes of its own below refs/exps.
    refs = [(ref, match) for ref, match in refs if match or not ref.startswith("refs/exps/")]
    with _opened(root) as repo:
        cache = repo.cache.local
        found: dict[str, str | None] = {"": None}
        runs = []
        for ref, match in refs:
            blob = _git(root, "rev-parse", "--verify", "--quiet", f"{ref}:./dvc.lock").strip()
            if blob not in found:
                found[blob] = _run_in_lock(_git(root, "cat-file", "blob", blob), cache)
            runs.append(RefRun(ref, match.group(2) if match else "", found[blob]))
    return runs


def _run_in_lock(text: str, cache: Any) -> str | None:
    """The run that DVC's cache holds for a dvc.lock; None where it was never here."""
    try:
        outs = files.parse_yaml(text)["stages"]["train"]["outs"]
        (md5,) = [out["md5"] for out in outs if out["path"] == _RUN]
        return str(files.read_json(Path(cache.oid_to_path(md5)))["run_id"])
    except (KeyError, TypeError, ValueError, OSError):
        return None


def remove_experiments(root: Path, refs: Collection[str]) -> None:
    """Remove DVC experiments by their full references."""
    if refs:
        with _opened(root) as repo:
            repo.experiments.remove(sorted(refs))


def unused_objects(
    root: Path, *, kept: Collection[str], commits: Collection[str], hashes: Collection[str]
) -> list[UnusedObject] | str:
    """Return what no commit, worktree or kept experiment needs of DVC's cache.

    Of branches, tags and stashes every commit counts, not their tips alone.

    Args:
        kept: full references of experiments that stay.
        commits: further commits, such as those that runs are made again from.
        hashes: what DVC knows further data by (`….dir` for a folder), with all that is in it.

    Returns:
        The objects; or, where it cannot be said what is needed, the reason.
    """
    if not is_dvc_repository(root):
        return "this is no project of git and DVC"
    from dvc.exceptions import DvcException
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

    stashes = _git(root, "for-each-ref", "--format=%(refname)", "refs/stash").split()
    extra = [commit for commit in commits if has_commit(root, commit)]
    with _opened(root) as repo:
        cache = repo.cache.local
        if root not in Path(cache.path).resolve().parents:
            return f"{cache.path} may be shared with other projects: `dvc gc --projects` frees it"
        try:
            used = repo.used_objs(
                all_commits=True, revs=[*kept, *extra, *stashes], force=True
            ).values()
            needed = {info.value for infos in used for info in infos}
            for folder in worktrees(root):
                if folder != root and is_dvc_repository(folder):
                    with _opened(folder) as other:
                        for infos in other.used_objs(force=True).values():
                            needed |= {info.value for info in infos}
        except DvcException as error:
            return f"DVC could not say what is needed of it ({one_line(error)})"
        for value in hashes:
            needed.add(value)
            if value.endswith(".dir") and Path(cache.oid_to_path(value)).is_file():
                tree = Tree.load(cache, HashInfo("md5", value))
                needed |= {entry.value for _, _, entry in tree}
        unused = []
        for _, database in repo.cache.by_scheme():
            if database is not None and Path(database.path).resolve().is_relative_to(root):
                for oid in database.all():
                    path = Path(database.oid_to_path(oid))
                    if oid not in needed and path.is_file():
                        seen = path.stat()
                        # Another link keeps the bytes.
                        unused.append(UnusedObject(path, seen.st_size * (seen.st_nlink == 1)))
    # What lists a folder's files goes first: without it they are no more than files.
    unique = {found.path: found for found in unused}
    return sorted(unique.values(), key=lambda found: (found.path.suffix != ".dir", found.path))


def remove_objects(root: Path, objects: Collection[UnusedObject]) -> None:
    """Remove files of DVC's cache, while no other DVC command changes it."""
    from dvc.repo import lock_repo

    with _opened(root) as repo, lock_repo(repo):
        for found in objects:
            found.path.unlink(missing_ok=True)


def check_idle(root: Path) -> None:
    """Check that no stage or experiment runs: what it has made so far, nothing refers to yet.

    Raises:
        TrackingError: one does.
    """
    folder = root / ".dvc" / "tmp"
    copies = [*folder.glob("exps/tmp*"), *folder.glob("exps/standalone/tmp*")]
    if copies:
        raise TrackingError(
            f"experiments must have ended before anything is removed, but one runs in {copies[0]}: "
            "wait for it; if it was killed, remove that folder"
        )
    # By path, who reads or writes it: {"pid": …, "cmd": …}.
    lock = folder / "rwlock"
    for pid in _PID.findall(lock.read_text(encoding="utf-8") if lock.is_file() else ""):
        if psutil.pid_exists(int(pid)):
            raise TrackingError(
                "stages must have ended before anything is removed, but DVC runs one in process "
                f"{pid}: wait for it"
            )


@contextlib.contextmanager
def _opened(root: Path) -> Iterator[Any]:
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        yield repo


def _git(root: Path, *arguments: str) -> str:
    """Git's answer; nothing where it says no."""
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, check=False)
    return done.stdout.decode(errors="surrogateescape") if done.returncode == 0 else ""
