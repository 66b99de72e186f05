"""Why the model says what it says of single images: its five best classes, and what spoke for one.

Knows a model file's contents and image files; `headstart explain` is its command.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from headstart import files
from headstart.errors import DataError
from headstart.images.decode import MAX_PIXELS, decode, resize
from headstart.models.gradcam import GradCam, overlay
from headstart.models.model_file import LoadedModel
from headstart.models.pixels import predict_batch
from headstart.params import ImageParams

_HEIGHT_PX = 320
_PANEL_PX = 360
_GAP_PX = 16
_INK, _QUIET, _BAR, _TRACK = (27, 31, 36), (90, 100, 112), (11, 102, 168), (223, 227, 232)


@dataclass(frozen=True)
class Explanation:
    """What the model says of one file, or why it says nothing.

    Attributes:
        top: the most probable classes with their probabilities, best first.
        picture: the image, its heat for the best class, and the classes as bars; a PNG file.
        reason: why there is no answer; empty where there is one.
    """

    path: Path
    top: tuple[tuple[str, float], ...] = ()
    picture: Path | None = None
    reason: str = ""


def explain_files(
    loaded: LoadedModel,
    paths: Iterable[Path],
    folder: Path,
    *,
    top: int = 5,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Explanation]:
    """Explain files one after another, writing a picture of each to `folder`.

    Raises:
        TrainingError: the model's features are not pooled from a map of the image.
    """
    cam = GradCam(loaded.model)
    image = ImageParams.model_validate(loaded.metadata["image"])
    taken: set[str] = set()
    for path in paths:
        try:
            picture = decode(path.read_bytes(), max_pixels=max_pixels)
        except (DataError, OSError) as error:
            yield Explanation(path, reason=str(error))
            continue
        square = resize(picture, image)
        probabilities = predict_batch(loaded.model, square[None])[0]
        order = np.argsort(-probabilities, kind="stable")[:top]
        heat = cam.heat(square[None], order[:1].astype(np.int64))[0]
        best = tuple((loaded.classes[i], float(probabilities[i])) for i in order)
        target = folder / _free_name(path, taken)
        with files.replacing(target) as temporary:
            Image.fromarray(_sheet(square, overlay(square, heat), best)).save(temporary)
        yield Explanation(path, best, target)


def _free_name(path: Path, taken: set[str]) -> str:
    """`cat/001.jpg` becomes `cat-001.png`; a name that is taken gets a number."""
    stem = f"{path.parent.name}-{path.stem}".lstrip("-")
    name, number = f"{stem}.png", 2
    while name in taken:
        name, number = f"{stem}-{number}.png", number + 1
    taken.add(name)
    return name


def _sheet(
    square: NDArray[np.uint8], hot: NDArray[np.uint8], best: tuple[tuple[str, float], ...]
) -> NDArray[np.uint8]:
    """The image, its heat and its classes side by side on white."""
    width = 2 * _HEIGHT_PX + _PANEL_PX + 4 * _GAP_PX
    sheet = Image.new("RGB", (width, _HEIGHT_PX + 2 * _GAP_PX), "white")
    for index, pixels in enumerate((square, hot)):
        large = Image.fromarray(pixels).resize((_HEIGHT_PX, _HEIGHT_PX), Image.Resampling.BICUBIC)
        sheet.paste(large, (_GAP_PX + index * (_HEIGHT_PX + _GAP_PX), _GAP_PX))
    draw = ImageDraw.Draw(sheet)
    left = 3 * _GAP_PX + 2 * _HEIGHT_PX
    draw.text((left, _GAP_PX), "What speaks for", fill=_QUIET, font=_font(15))
    draw.text((left, _GAP_PX + 20), _shortened(draw, best[0][0], 26), fill=_INK, font=_font(26))
    for row, (name, probability) in enumerate(best):
        _bar(draw, left, _GAP_PX + 76 + 48 * row, name, probability)
    return np.asarray(sheet)


def _bar(draw: ImageDraw.ImageDraw, left: int, top: int, name: str, probability: float) -> None:
    right = left + _PANEL_PX - _GAP_PX
    draw.text((left, top), _shortened(draw, name, 16), fill=_INK, font=_font(16))
    draw.text((right, top), f"{100 * probability:.1f} %", fill=_INK, font=_font(16), anchor="ra")
    draw.rounded_rectangle((left, top + 25, right, top + 33), 4, fill=_TRACK)
    filled = left + round(probability * (right - left))
    if filled - left >= 2:
        draw.rounded_rectangle((left, top + 25, filled, top + 33), 4, fill=_BAR)


def _shortened(draw: ImageDraw.ImageDraw, text: str, size: int) -> str:
    room = _PANEL_PX - _GAP_PX - 80
    while draw.textlength(text, font=_font(size)) > room:
        text = text[:-2] + "…"
    return text


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # The plots' font, which travels with matplotlib and knows most alphabets.
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)
