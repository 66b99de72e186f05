"""The part of a truncated JPEG that is there, to show a person; never to be learned from."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headstart.images.decode import RejectedImage, decode_preview

_MOST_BYTES = 20_000_000
_MOST_PIXELS = 25_000_000
_END_OF_IMAGE = b"\xff\xd9"


def decode_what_is_there(path: Path, max_side_px: int) -> NDArray[np.uint8] | None:
    """RGB uint8 of the rows that a damaged JPEG still holds, the rest grey; none if none do.

    libjpeg fills up what is missing before the marker that ends an image.
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
