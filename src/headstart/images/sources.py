"""From `data.source` to a folder of raw images: known data sets and local folders.

Knows how to bring files, not what their names mean (layout.py does).
"""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from headstart.errors import DataError
from headstart.images.arrays import read_spec, write_pictures
from headstart.images.layout import everything_below, scan
from headstart.params.images import DataParams
from headstart.progress import progress_bar

_FICLONE = 0x40049409  # linux/fs.h


def fetch(root: Path, target: Path, data: DataParams) -> int:
    """Bring the images of `data.source` into `target`, whole or not at all.

    A relative source is relative to `root`. Returns how many files there are.

    Raises:
        DataError: the source is missing, empty or cannot be read.
    """
    source = root / data.source
    if not source.exists():
        raise DataError(f"data.source must exist, but there is no {data.source}: correct the path")
    with _replacing_folder(target) as folder:
        if source.is_dir():
            count = link_folder(source, folder)
        elif source.suffix in (".yaml", ".yml"):
            count = write_pictures(read_spec(source), folder)
        else:
            raise DataError(
                f"data.source must be a spec file or a folder, but {data.source} is neither"
            )
        if count == 0:
            raise DataError(f"data.source must hold images, but {data.source} holds no files")
        scan(folder)
    return count


def link_folder(source: Path, target: Path) -> int:
    """Bring every file below `source` to the same place below `target`; returns how many."""
    count = 0
    with progress_bar(total=0, unit="files", title="fetch") as bar:
        for path, is_folder in everything_below(source):
            if is_folder:
                (target / path).mkdir()
                continue
            bring_file((source / path).resolve(), target / path)
            count += 1
            bar.update(1)
    return count


def bring_file(source: Path, target: Path) -> None:
    """The bytes of `source` at `target`, without a second copy on disk where that can be."""
    if _reflink(source, target):
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _reflink(source: Path, target: Path) -> bool:
    if sys.platform != "linux":
        return False
    import fcntl

    try:
        with source.open("rb") as read, target.open("xb") as write:
            fcntl.ioctl(write.fileno(), _FICLONE, read.fileno())
    except OSError:
        target.unlink(missing_ok=True)
        return False
    return True


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
        if target.exists():
            shutil.rmtree(target)
        folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
