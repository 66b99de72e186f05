"""Input pixels of images: of a folder, kept in the row cache, or of pictures that Python code has.

ingest decodes, pack and extract read; where they are not kept, whoever needs them decodes.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headstart.cache.row_cache import RowCache
from headstart.cache.shards import Keys, row_keys
from headstart.common.errors import DataError, DiskError
from headstart.common.files import sha256_of_json
from headstart.common.machine import usable_cores
from headstart.common.prefetch import prefetched
from headstart.common.progress import progress
from headstart.common.terminal import say
from headstart.images.decode import (
    DECODE_VERSION,
    decode,
    decode_input,
    decoder_versions,
    resize,
)
from headstart.images.image_files import read_verified
from headstart.params.image import ImageParams

Picture = str | PathLike[str] | bytes | NDArray[np.uint8]
"""A path, the bytes of an image file, or RGB pixels, uint8 (height, width, 3)."""

_IMAGES_AHEAD = 64


class InputPixels:
    """Input pixels, uint8 (size, size, 3), of the files of a folder by path and sha256.

    Args:
        cache_root: the folder of all caches.
        max_pixels: of an image that is decoded.
    """

    def __init__(
        self, cache_root: Path, folder: Path, image: ImageParams, *, max_pixels: int
    ) -> None:
        self.image, self._folder, self._max_pixels = image, folder, max_pixels
        self._is_told = False
        recipe = {
            "image_size": image.size,
            **image.model_dump(include={"resampling", "fit"}),
            "decode_version": DECODE_VERSION,
            "decoder": decoder_versions(),
        }
        self.rows = RowCache(cache_root / "pixels" / sha256_of_json(recipe)[:32], recipe)

    @contextlib.contextmanager
    def keeping(self) -> Iterator[Callable[[list[bytes], NDArray[np.uint8]], None]]:
        """Take pixels that were decoded anyway, as (sha256s, pixels).

        Where they cannot be written, that is said once: pixels can be decoded again.
        """
        stack = contextlib.ExitStack()

        def put(sha256: list[bytes], pixels: NDArray[np.uint8]) -> None:
            if not self._is_told:
                with self._telling():
                    writer.put(row_keys([digest.hex() for digest in sha256]), pixels)

        with self._telling():
            stack.enter_context(self.rows.in_use())
            writer = stack.enter_context(self.rows.writer(dict))
        try:
            yield put
        finally:
            with self._telling():
                stack.close()

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except DiskError as error:
            if not self._is_told:
                say(f"pixels are not kept: {error}", error=True)
            self._is_told = True

    def complete(self, paths: Sequence[str], sha256: Sequence[str]) -> int:
        """Decode and keep the pixels that are missing; returns how many.

        Raises:
            DataError: a file is gone or has changed.
        """
        keys = row_keys(sha256)

        def compute(lacking: Keys) -> Iterator[tuple[Keys, NDArray[np.uint8]]]:
            chosen = np.flatnonzero(np.isin(keys, lacking)).tolist()
            first = dict(zip((sha256[i] for i in reversed(chosen)), reversed(chosen), strict=True))
            wanted = sorted(first.values())
            with ThreadPoolExecutor(usable_cores(), thread_name_prefix="decode") as pool:
                images = ((paths[i], sha256[i]) for i in wanted)
                pixels = prefetched(lambda image: self._decode(*image), images, pool, _IMAGES_AHEAD)
                bar = progress(pixels, total=len(wanted), unit="images", title="decode")
                for i, own in zip(wanted, bar, strict=True):
                    yield keys[i : i + 1], own[None]

        n_decoded = [0]
        if not self._is_told:
            with self._telling(), self.rows.in_use():
                n_decoded.append(self.rows.fill(keys, compute, dict))
        return n_decoded[-1]

    @contextlib.contextmanager
    def in_use(self, sha256: Sequence[str]) -> Iterator[None]:
        """The pixels of these images, where they are kept, stay meanwhile, and are sound."""
        with self.rows.in_use():
            self.rows.missing(row_keys(sha256))
            yield

    def read(self, path: str, sha256: str) -> NDArray[np.uint8]:
        """The pixels of one file; raises as `complete` does."""
        # The second: `headstart cache verify` has set a damaged shard aside meanwhile.
        with contextlib.suppress(KeyError, FileNotFoundError):
            (pixels,) = self.rows.get(row_keys([sha256]))
            return np.asarray(pixels, np.uint8)
        return self._decode(path, sha256)

    def decode_whole(self, path: str, sha256: str) -> NDArray[np.uint8]:
        """All pixels of one file, as it is, for whoever cuts from them; raises as `read` does."""
        return decode(read_verified(self._folder / path, sha256), max_pixels=self._max_pixels)

    def _decode(self, path: str, sha256: str) -> NDArray[np.uint8]:
        data = read_verified(self._folder / path, sha256)
        return decode_input(data, self.image, max_pixels=self._max_pixels)


def picture_pixels(picture: Picture, image: ImageParams) -> NDArray[np.uint8]:
    """The input pixels of a picture, uint8 (size, size, 3).

    Raises:
        DataError: it is no image, or its pixels are not RGB.
        OSError: its file cannot be read.
    """
    if isinstance(picture, np.ndarray):
        return resize(_checked(picture), image)
    return decode_input(_bytes_of(picture), image)


class PicturePixels:
    """Input pixels of pictures, which go by their numbers where others have a path.

    Attributes:
        names: the numbers, as text.
        sha256: of each picture's bytes; pixels hash to something else than a file of them.

    Raises:
        DataError: a file cannot be read, or pixels are not RGB; it names which.
    """

    def __init__(self, pictures: Sequence[Picture], image: ImageParams) -> None:
        self.image, self._pictures = image, pictures
        self.names = [str(number) for number in range(len(pictures))]
        self.sha256 = []
        for number, picture in enumerate(pictures):
            with self._naming(number):
                self.sha256.append(_sha256_of(picture))

    def in_use(self, sha256: Sequence[str]) -> contextlib.AbstractContextManager[None]:  # noqa: ARG002
        """Nothing is kept."""
        return contextlib.nullcontext()

    def read(self, path: str, sha256: str) -> NDArray[np.uint8]:
        """The pixels of the picture of this number.

        Raises:
            DataError: it cannot be decoded, or its file has changed since; it names which.
        """
        picture = self._pictures[int(path)]
        with self._naming(int(path)):
            if not isinstance(picture, np.ndarray):
                picture = _bytes_of(picture)
                if hashlib.sha256(picture).hexdigest() != sha256:
                    raise DataError("it must not change while it is read, but it has: try again")
            return picture_pixels(picture, self.image)

    def decode_whole(self, path: str, sha256: str) -> NDArray[np.uint8]:  # noqa: ARG002
        """As `read`, of all pixels."""
        picture = self._pictures[int(path)]
        return picture if isinstance(picture, np.ndarray) else decode(_bytes_of(picture))

    @contextlib.contextmanager
    def _naming(self, number: int) -> Iterator[None]:
        picture = self._pictures[number]
        name = f" ({picture})" if isinstance(picture, str | PathLike) else ""
        try:
            yield
        except DataError as error:
            raise DataError(f"image {number}{name}: {error}") from None
        except OSError as error:
            raise DataError(
                f"every image must be readable, but image {number}{name} is not "
                f"({error.strerror or error}): correct its path, or leave it out"
            ) from None


def _bytes_of(picture: str | PathLike[str] | bytes) -> bytes:
    return picture if isinstance(picture, bytes) else Path(picture).read_bytes()


def _sha256_of(picture: Picture) -> str:
    if isinstance(picture, np.ndarray):
        height, width, _ = _checked(picture).shape
        header = f"RGB pixels, {height} x {width}\n".encode()
        return hashlib.sha256(header + picture.tobytes()).hexdigest()
    return hashlib.sha256(_bytes_of(picture)).hexdigest()


def _checked(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise DataError(
            "pixels must be RGB, uint8 of shape (height, width, 3), but got "
            f"{pixels.dtype} of shape {pixels.shape}: convert them"
        )
    return pixels
