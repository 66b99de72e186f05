"""What the HDF5 files of this room share: clear errors, strings, mapping into memory."""

import contextlib
import functools
import mmap
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, overload

import h5py
import numpy as np
from numpy.typing import NDArray

from headstart.common.errors import FormatError, one_line

_LARGE_BYTES, _THREADS = 16 << 20, 4


@contextlib.contextmanager
def open_h5(path: Path, remedy: str) -> Iterator[Any]:
    """Open an HDF5 file for reading.

    Raises:
        FormatError: the file is missing, truncated or no HDF5 file; says `remedy`.
    """
    try:
        file = h5py.File(path, "r", locking=False)
    except FileNotFoundError:
        raise FormatError(f"{path} must exist, but does not: {remedy}") from None
    except OSError as error:
        raise FormatError(
            f"{path} must be a whole HDF5 file, but it is truncated or damaged "
            f"({one_line(error, 120)}): {remedy}"
        ) from None
    with file:
        yield file


def check_format(file: Any, path: Path, name: str, version: int, remedy: str) -> None:
    """Refuse a file of another format or version.

    Raises:
        FormatError: naming the path, what it is, and `remedy`.
    """
    found = file.attrs.get("format")
    if found != name:
        raise FormatError(
            f"{path} must be of the format {name}, but is {found or 'another'}: {remedy}"
        )
    found_version = int(file.attrs.get("format_version", 0))
    if found_version != version:
        raise FormatError(
            f"{path} must be of version {version} of {name}, but is of version {found_version}: "
            f"{remedy}"
        )


def write_strings(file: Any, name: str, values: Sequence[str]) -> None:
    """A dataset of UTF-8 strings of fixed length: deterministic, and read in one go."""
    encoded = [value.encode() for value in values]
    length = max((len(value) for value in encoded), default=1) or 1
    dtype = h5py.string_dtype("utf-8", length)
    file.create_dataset(name, data=np.asarray(encoded, dtype=dtype))


class Strings(Sequence[str]):
    """Fixed-length UTF-8 strings, which cannot hold a zero byte: decoded when first asked for.

    Rows of features are often wanted without them, and decoding takes longer than the reading.
    """

    def __init__(self, encoded: NDArray[np.bytes_], rows: NDArray[np.int64] | None = None) -> None:
        """All of `encoded`, or those rows of it, which must be there."""
        self._encoded, self._rows = encoded, rows

    def __len__(self) -> int:
        return len(self._encoded if self._rows is None else self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self._decoded[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self._decoded)

    @functools.cached_property
    def _decoded(self) -> list[str]:
        values = self._encoded if self._rows is None else self._encoded[self._rows]
        # All at once: a call for each takes ten times as long.
        return b"\0".join(values.tolist()).decode().split("\0") if len(values) else []


def gather(mapped: NDArray[Any], indices: NDArray[np.int64]) -> NDArray[Any]:
    """Rows of a mapped array, in memory, in the order of `indices`.

    Many rows are copied by several threads: a single one waits for the kernel, which maps the pages
    of the file and clears those of the copy, longer than the copying takes.

    Raises:
        IndexError: a row is not there.
    """
    rows = np.arange(len(mapped))[indices]
    found = np.empty((len(rows), *mapped.shape[1:]), mapped.dtype)
    # Numpy would copy twice if it had to look for wrong indices here.
    take = functools.partial(np.take, mapped, axis=0, mode="clip")
    if found.nbytes < _LARGE_BYTES:
        take(rows, out=found)
        return found
    parts = zip(np.array_split(rows, _THREADS), np.array_split(found, _THREADS), strict=True)
    with ThreadPoolExecutor(_THREADS) as pool:
        for done in [pool.submit(take, chosen, out=target) for chosen, target in parts]:
            done.result()
    # The file's pages would count as this process's memory for as long as it is mapped.
    file = getattr(mapped, "_mmap", None)
    if isinstance(file, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        file.madvise(mmap.MADV_DONTNEED)
    return found


def stored_array(group: Any, name: str) -> NDArray[Any]:
    """Read a dataset whose values lie in this file itself, as whole files of ours have them.

    Raises:
        FormatError: it is a link or lies elsewhere, which could read any file of the machine, or is
            said to be larger than what is stored, which could take any amount of memory.
    """
    item = group
    for part in name.split("/"):
        if not isinstance(item.get(part, getlink=True), h5py.HardLink):
            raise FormatError(f"{name} must lie in the file itself, but is a link or not there")
        item = item[part]
    if not isinstance(item, h5py.Dataset) or item.is_virtual or item.external is not None:
        raise FormatError(f"{name} must be values in the file itself, but lies elsewhere")
    if item.nbytes > item.id.get_storage_size():
        raise FormatError(f"{name} must be stored in full, but {item.nbytes} bytes of it are not")
    return np.asarray(item[()])


def map_dataset(dataset: Any, path: Path) -> NDArray[Any]:
    """A contiguous dataset as a read-only array over the mapped file.

    Raises:
        FormatError: the dataset is chunked or compressed, or the file ends before it.
    """
    if dataset.size == 0:
        return np.empty(dataset.shape, dataset.dtype)
    offset = dataset.id.get_offset()
    if offset is None:
        raise FormatError(f"{path} must hold {dataset.name} contiguously: make it again")
    try:
        return np.memmap(path, dataset.dtype, "r", offset, dataset.shape)
    except ValueError:
        raise FormatError(f"{path} is truncated: make it again") from None
