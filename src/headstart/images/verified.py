"""Image files as the manifest lists them, or an error."""

import hashlib
from pathlib import Path

from headstart.common.errors import DataError


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
