"""From `data.source` to a folder of raw images: known data sets, folders, archives, shards, URLs.

Knows how to bring files, not what their names mean (layout.py does).
"""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from headstart.errors import DataError, one_line
from headstart.images.archives import ArchiveLimits, is_archive, unpack
from headstart.images.arrays import read_spec, write_pictures
from headstart.images.labels import LABELS_FILE
from headstart.images.layout import is_split_into_folders, looks_like_image, scan
from headstart.images.linking import bring_file, readable_name
from headstart.images.walk import children, everything_below
from headstart.images.webdataset import is_shard, is_shard_folder, unpack_shards
from headstart.params.images import DataParams
from headstart.progress import progress_bar


def fetch(root: Path, target: Path, data: DataParams) -> int:
    """Bring the images of `data.source` into `target`, whole or not at all.

    A relative source is relative to `root`. Returns how many files there are.

    Raises:
        DataError: the source is missing, hostile, empty, cannot be read, or is not laid out as a
            folder of images.
    """
    with _replacing_folder(target) as folder:
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", data.source):
            with _downloaded(data.source, root, target.parent) as source:
                count = _bring(source, folder, data)
        else:
            count = _bring(_local(root, target, data.source), folder, data)
        if count == 0:
            raise DataError(f"data.source must hold images, but {data.source} holds no files")
        scan(folder)
    return count


def _local(root: Path, target: Path, named: str) -> Path:
    source = root / named
    try:
        exists = source.exists()
    except PermissionError:
        raise _unreadable(source) from None
    if not exists:
        raise DataError(
            f"data.source must name something that exists, but there is no {source}: correct the "
            "path in params.yaml"
        )
    if source.is_dir() and target.resolve().is_relative_to(source.resolve()):
        raise DataError(
            f"data.source must not hold the project's own {target.name}/ folder, but {named} does: "
            "put the images into a folder of their own, such as data/own"
        )
    return source


def _bring(source: Path, folder: Path, data: DataParams) -> int:
    limits = ArchiveLimits(int(data.max_archive_gb * 1e9), data.max_archive_members)
    try:
        if source.is_dir():
            if is_shard_folder(source):
                return unpack_shards(source, folder, limits)
            return link_folder(source, folder)
        if source.suffix in (".yaml", ".yml"):
            return write_pictures(read_spec(source), folder)
        if is_shard(source):
            return unpack_shards(source, folder, limits)
        if is_archive(source):
            count = unpack(source, folder, limits)
            _unwrap(folder)
            return count
    except PermissionError as error:
        raise _unreadable(Path(error.filename or source)) from None
    except OSError as error:
        raise DataError(
            f"the images of data.source must be brought to {folder.parent}, but that failed: "
            f"{one_line(error)}; mend it (a full disk: make room) and run dvc repro again"
        ) from None
    raise DataError(
        "data.source must be a folder of images, a zip or tar archive, a spec file (.yaml) or a "
        f"URL, but {source} is none of them"
    )


def _unreadable(path: Path) -> DataError:
    return DataError(
        f"data.source must be readable, but {path} is not: permission denied; change its mode or "
        "owner"
    )


def link_folder(source: Path, target: Path) -> int:
    """Bring every file below `source` to the same place below `target`; returns how many."""
    count = 0
    with progress_bar(total=0, unit="files", title="fetch") as bar:
        class_depth = 2 if is_split_into_folders(source) else 1
        for path, is_folder in everything_below(source, class_depth=class_depth):
            destination = target / readable_name(path)
            if is_folder:
                destination.mkdir()
                continue
            bring_file(Path(os.path.realpath(source / path)), destination)
            count += 1
            bar.update(1)
    return count


def _unwrap(folder: Path) -> None:
    """Archives often hold one folder with everything in it: take what is in there."""
    while len(here := children(folder)) == 1 and here[0][1]:
        inner = folder / here[0][0]
        names = children(inner)
        folders = [name for name, is_folder in names if is_folder]
        holds_layout = (inner / LABELS_FILE).is_file() or is_split_into_folders(inner)
        if not holds_layout and (
            not folders or any(looks_like_image(name) for name, is_folder in names if not is_folder)
        ):
            return
        aside = folder / ".unwrapped"
        inner.rename(aside)
        for child in aside.iterdir():
            child.rename(folder / child.name)
        aside.rmdir()


@contextlib.contextmanager
def _downloaded(url: str, root: Path, scratch: Path) -> Iterator[Path]:
    """What is at a URL, brought by DVC with the credentials and remotes that DVC knows."""
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
