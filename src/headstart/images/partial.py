"""The part of a truncated image that is there, to show a person; never to be learned from."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFile

_MOST_BYTES = 20_000_000
_MOST_PIXELS = 25_000_000


def decode_what_is_there(path: Path) -> NDArray[np.uint8] | None:
    """RGB uint8 of the rows that a damaged file still holds, the rest black; none if none do."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            return None
        parser = ImageFile.Parser()
        parser.feed(path.read_bytes())
        image = parser.image
        if image is None or image.width * image.height > _MOST_PIXELS:
            return None
        pixels = np.asarray(image.convert("RGB"))
    # The file is known to be damaged, and Pillow's readers raise nearly anything.
    except Exception:
        return None
    return pixels if pixels.any() else None
