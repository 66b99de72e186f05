"""Image files: as the manifest lists them, or an error; and what is left of a truncated one."""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headstart.common.errors import DataError
from headstart.images.decode import RejectedImage, decode_preview

_MOST_BYTES = 20_000_000
_MOST_PIXELS = 25_000_000
_END_OF_IMAGE = b"\xff\xd9"


def read_verified(path: Path, sha256: str) -> bytes:
    """Return the bytes of an image file of the manifest.

    Raises:
        DataError: the file cannot be read, or has changed since it was listed.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"every image of the manifest must be readable, but {path} is not "
            f"({error.strerror}): run `dvc repro`, which fetches and lists the images again"
        ) from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DataError(
            f"every image must be as the manifest lists it, but {path} has changed since: "
            "run `dvc repro`, which lists the images again"
        )
    return data


def decode_what_is_left(path: Path, max_side_px: int) -> NDArray[np.uint8] | None:
    """Return RGB uint8 of the rows that a damaged JPEG still holds, the rest grey, or none.

    To show a person; never to be learned from. libjpeg fills up what is missing before the marker
    that ends an image.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            return None
        data = path.read_bytes()
        if not data.startswith(b"\xff\xd8"):
            return None
        return decode_preview(data + _END_OF_IMAGE, max_side_px, max_pixels=_MOST_PIXELS)
    except (OSError, RejectedImage):
        return None
