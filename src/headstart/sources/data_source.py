"""From `data.source` to a folder of raw images: known data sets, folders, archives, shards, URLs.

Knows how to copy, link and unpack files, not what their names mean (layout.py does).
"""

import contextlib
import os
import posixpath
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from headstart.common.errors import DataError, one_line
from headstart.common.progress import progress_bar
from headstart.params.data import DataParams
from headstart.sources.archives import ArchiveLimits, is_archive, unpack
from headstart.sources.arrays import read_spec, write_pictures
from headstart.sources.folders import copy_or_link, everything_below, files_below, readable_name
from headstart.sources.layout import (
    check_class_files,
    check_class_names,
    outer_folder,
    scan,
    split_folders,
)
from headstart.sources.webdataset import is_sharded, unpack_shards

# More files than anyone keeps in an archive: against one that unpacks without end.
MAX_ARCHIVE_MEMBERS = 5_000_000


@dataclass(frozen=True)
class Fetched:
    """How many files there are now, and sentences about them for the user."""

    n_files: int
    notes: list[str]


def fetch(root: Path, target: Path, data: DataParams) -> Fetched:
    """Copy, link, unpack or download the images of `data.source` into `target` atomically.

    A relative source is relative to `root`.

    Raises:
        DataError: the source is missing, hostile, empty, cannot be read, or is not laid out as a
            folder of images.
    """
    notes = []
    with _replacing_folder(target) as folder:
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", data.source):
            with _downloaded(data.source, root, target.parent) as source:
                outer = _fill(folder, source, data)
        else:
            source = root / data.source
            try:
                exists = source.exists()
            except PermissionError:
                raise _unreadable(source) from None
            if not exists:
                raise DataError(
                    f"data.source must name something that exists, but there is no {source}: "
                    "correct the path in params.yaml"
                )
            if source.is_dir() and target.resolve().is_relative_to(source.resolve()):
                raise DataError(
                    f"data.source must not hold the project's own {target.name}/ folder, but "
                    f"{data.source} does: put the images into a folder of their own, such as "
                    "data/own"
                )
            outer = _fill(folder, source, data)
            notes += _missing_in_experiments(root, data.source)
        n_files = sum(1 for _ in files_below(folder))
        if n_files == 0:
            raise DataError(f"data.source must hold images, but {data.source} holds no files")
        if outer:
            notes.append(f"everything is in {outer}/: what is in there counts")
        called = posixpath.join(data.source, outer).rstrip("/")
        layout = scan(folder, called)
        if data.class_names == "checked":
            check_class_names(layout, called)
        check_class_files(layout, called)
    return Fetched(n_files, [*notes, *layout.notes])


def _fill(folder: Path, source: Path, data: DataParams) -> str:
    """Copy, link or unpack the files of a source; returns the outer folder that was left away."""
    limits = ArchiveLimits(int(data.max_archive_gb * 1e9), MAX_ARCHIVE_MEMBERS)
    outer = ""
    try:
        if is_sharded(source):
            unpack_shards(source, folder, limits)
        elif source.is_dir():
            outer = outer_folder(source)
            link_folder(source / outer, folder)
        elif source.suffix in (".yaml", ".yml"):
            write_pictures(read_spec(source), folder)
        elif is_archive(source):
            # No member is called so: hidden ones are left out.
            unpacked = folder / ".unpacked"
            unpacked.mkdir()
            unpack(source, unpacked, limits)
            outer = outer_folder(unpacked)
            for child in (unpacked / outer).iterdir():
                child.rename(folder / child.name)
            shutil.rmtree(unpacked)
        else:
            raise DataError(
                "data.source must be a folder of images, a zip or tar archive, a spec file (.yaml) "
                f"or a URL, but {source} is none of them"
            )
    except PermissionError as error:
        raise _unreadable(Path(error.filename or source)) from None
    except OSError as error:
        raise DataError(
            f"the images of data.source must be copied to {folder.parent}, but that failed: "
            f"{one_line(error)}; repair it (a full disk: make room) and run dvc repro again"
        ) from None
    return outer


def _unreadable(path: Path) -> DataError:
    return DataError(
        f"data.source must be readable, but {path} is not: permission denied; change its mode or "
        "owner"
    )


def link_folder(source: Path, target: Path) -> int:
    """Copy or link every file below `source` to the same place below `target`; returns how many.

    Raises:
        DataError: the names of two differ only in what is no text.
    """
    count = 0
    with progress_bar(total=0, unit="files", title="fetch") as bar:
        class_depth = 2 if split_folders(source) else 1
        for path, is_folder in everything_below(source, class_depth=class_depth):
            destination = target / readable_name(path)
            if is_folder:
                destination.mkdir()
                continue
            if destination.exists():
                raise DataError(
                    f"files must have names that differ, but {source} has two that are read as "
                    f"{readable_name(path)!r}: rename one"
                )
            copy_or_link(Path(os.path.realpath(source / path)), destination)
            count += 1
            bar.update(1)
    return count


def _missing_in_experiments(root: Path, named: str) -> list[str]:
    """Warn of a source that is not in the copies of the workspace that DVC makes.

    They hold what is in git's index, and what the .dvc files there stand for.
    """
    if Path(named).is_absolute():
        return []
    source = posixpath.normpath(named)
    above = (source, *(str(path) for path in Path(source).parents))
    pointers = [f"{path}.dvc" for path in above if posixpath.basename(path) not in ("", ".", "..")]
    git = ["git", "--literal-pathspecs", "-C", str(root)]
    try:
        subprocess.run([*git, "rev-parse"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []  # no repository, so no experiments
    done = subprocess.run(
        [*git, "ls-files", "--", source, *pointers], capture_output=True, check=False
    )
    if done.stdout:
        return []
    lost = "so `dvc exp run --queue` and `--temp` will not find it"
    if source.startswith("../"):
        return [f"{named} is a relative path out of the project, {lost}: give its absolute path"]
    return [
        f"{named} is tracked neither by git nor by DVC, {lost}: run `dvc add {source}` and "
        f"`git add {source}.dvc`"
    ]


@contextlib.contextmanager
def _downloaded(url: str, root: Path, scratch: Path) -> Iterator[Path]:
    """Yield what is at a URL, downloaded by DVC with the credentials and remotes that DVC knows."""
    # DVC takes a second to import, and only this needs it.
    from dvc.config import Config
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc_objects.fs.errors import RemoteMissingDepsError

    folder = Path(tempfile.mkdtemp(prefix=".download.", suffix=".tmp", dir=scratch))
    name = re.sub(r"[?#].*", "", url).rstrip("/").rpartition("/")[2] or "download"
    dvc_folder = root / ".dvc"
    try:
        try:
            config = Config(str(dvc_folder)) if dvc_folder.is_dir() else None
            Repo.get_url(url, str(folder / name), config=config)
        except RemoteMissingDepsError as error:
            raise DataError(f"data.source is {url}, but {one_line(error)}") from None
        except (DvcException, OSError) as error:
            raise DataError(
                f"data.source must be reachable, but {url} is not: {one_line(error)}; try "
                f"`dvc get-url {url}`"
            ) from None
        # Outside the `try`: what goes wrong with the files later is no fault of the URL.
        yield folder / name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _replacing_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` if all goes well, and is removed if not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for left_over in target.parent.glob(f".{target.name}.*.tmp"):
        shutil.rmtree(left_over, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        folder.chmod(0o755)
        yield folder
        if target.is_symlink():
            target.unlink()
        elif target.exists():
            shutil.rmtree(target)
        folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
