"""data/images.h5: input pixels of chosen splits, for training from pixels.

Without compression the pixels lie in one piece in the file and are read through a memory map,
which is as fast as a bare array on disk; with compression each image is a chunk of its own.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from headstart.common.files import replacing
from headstart.common.hdf5 import check_format, open_h5
from headstart.common.machine import usable_cores
from headstart.common.prefetch import prefetched
from headstart.common.progress import progress
from headstart.dataset.manifest import Manifest
from headstart.images.decode import DECODE_VERSION
from headstart.params.image import ImageParams
from headstart.params.pack import PackParams

_FORMAT = "headstart-images"
_FORMAT_VERSION = 1
_IMAGES_AHEAD = 64
_REMEDY = "run `dvc repro pack`"

Read = Callable[[str, str], NDArray[np.uint8]]
Index = int | slice | Sequence[int] | NDArray[np.integer[Any]] | NDArray[np.bool_]


class ImageStore:
    """An array-like reader of images.h5: uint8, shape (n, size, size, 3).

    `store[3]`, `store[10:20]`, `store[[5, 1, 9]]` and `store[mask]` give pixels. It can be pickled
    and used after a fork: every process opens the file for itself.
    """

    def __init__(self, path: Path) -> None:
        """Open the store.

        Raises:
            FormatError: the file is missing, damaged, or of another format or version.
        """
        self.path = Path(path)
        with open_h5(self.path, _REMEDY) as file:
            check_format(file, self.path, _FORMAT, _FORMAT_VERSION, _REMEDY)
            images = file["images"]
            self.shape: tuple[int, ...] = images.shape
            self.dtype: np.dtype[Any] = images.dtype
            self.classes: tuple[str, ...] = tuple(json.loads(file.attrs["classes"]))
            self.labels: NDArray[np.int64] = file["label_ids"][:]
            self.sha256: list[str] = [value.decode() for value in file["sha256"][:]]
            self.splits: list[str] = [value.decode() for value in file["split"][:]]
            self._offset: int | None = images.id.get_offset()
        self._pixels: Any = None
        self._owner = -1

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Index) -> NDArray[Any]:
        if isinstance(index, list | tuple):
            index = np.array(index, dtype=np.int64)
        if self._owner != os.getpid():
            if 0 in self.shape:
                self._pixels = np.empty(self.shape, self.dtype)
            elif self._offset is None:
                self._pixels = h5py.File(self.path, "r")["images"]
            else:
                self._pixels = np.memmap(self.path, self.dtype, "r", self._offset, self.shape)
            self._owner = os.getpid()
        if isinstance(self._pixels, np.ndarray):
            return np.asarray(self._pixels[index])
        # h5py knows neither negative rows, nor unsorted ones, nor the same one twice.
        rows = np.arange(len(self))[index]
        if rows.ndim == 0:
            return np.asarray(self._pixels[int(rows)])
        pixels = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for i, row in enumerate(rows.tolist()):
            self._pixels.read_direct(pixels, np.s_[row], np.s_[i])
        return pixels

    def batches(self, batch_size: int) -> Iterator[NDArray[Any]]:
        """Yield all images in order, `batch_size` at a time."""
        for start in range(0, len(self), batch_size):
            yield self[start : start + batch_size]

    def close(self) -> None:
        """Let go of the file; the next read opens it again."""
        if isinstance(self._pixels, h5py.Dataset) and self._owner == os.getpid():
            self._pixels.file.close()
        self._pixels, self._owner = None, -1

    def __enter__(self) -> "ImageStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pixels": None, "_owner": -1}


def pack(path: Path, manifest: Manifest, read: Read, image: ImageParams, params: PackParams) -> int:
    """Write the input pixels of the images of `pack.splits` to the store; return how many.

    Args:
        read: the pixels of a file by its path and sha256.
        image: what they are of.

    Raises:
        DataError: a file is not the one that the manifest lists.
    """
    chosen = manifest.select(*params.splits)
    rows = zip(chosen.paths, chosen.sha256, strict=True)
    with replacing(path) as temporary, ThreadPoolExecutor(usable_cores()) as pool:
        pixels = prefetched(lambda row: read(*row), rows, pool, _IMAGES_AHEAD)
        write_store(
            temporary,
            progress(pixels, total=len(chosen), unit="images", title="pack"),
            shape=(len(chosen), image.size, image.size, 3),
            label_ids=chosen.label_ids,
            sha256=chosen.sha256,
            splits=chosen.splits,
            attributes={
                "classes": list(chosen.classes),
                "decode_version": DECODE_VERSION,
                "image": image.model_dump(),
            },
            compression=params.compression,
        )
    return len(chosen)


def write_store(
    path: Path,
    images: Iterable[NDArray[Any]],
    *,
    shape: tuple[int, ...],
    label_ids: NDArray[np.int64],
    sha256: Sequence[str],
    splits: Sequence[str],
    attributes: dict[str, Any],
    dtype: "np.dtype[Any] | type[np.generic]" = np.uint8,
    compression: str = "none",
) -> None:
    """Write `images`, one after another; the same rows give the same bytes."""
    layout: dict[str, Any] = {}
    if compression != "none" and shape[0] > 0:
        layout = {"chunks": (1, *shape[1:]), "compression": compression, "shuffle": True}
    with h5py.File(path, "w") as file:
        file.attrs["format"] = _FORMAT
        file.attrs["format_version"] = _FORMAT_VERSION
        for name, value in attributes.items():
            file.attrs[name] = json.dumps(value, ensure_ascii=False, sort_keys=True)
        pixels = file.create_dataset("images", shape, dtype, track_times=False, **layout)
        for row, picture in enumerate(images):
            pixels[row] = picture
        for name, values in (
            ("label_ids", label_ids),
            ("sha256", np.array(sha256, dtype="S64")),
            ("split", np.array(splits, dtype="S10")),
        ):
            file.create_dataset(name, data=values, track_times=False)
