"""Why the model says what it says of images: Grad-CAM heat maps, and a sheet for each image.

Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", ICCV 2017. Knows a model and image files; `headstart explain` is its command.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from headstart.common import files
from headstart.common.errors import DataError, TrainingError
from headstart.common.machine import usable_cores
from headstart.encoders.onnx_graph import onnx_model, read_layers
from headstart.encoders.onnx_session import open_onnx
from headstart.images.decode import MAX_PIXELS, decode_input
from headstart.models.inference import FEATURES
from headstart.models.model_file import LoadedModel

_STRENGTH = 0.65
# Of the features' length: how far to both sides a slope is taken.
_STEP = 0.003
_MOST_VALUES = 1 << 24  # of directions at once
# Narrow and in large letters: it is read on a phone too.
_HEIGHT_PX = 320
_GAP_PX = 16
_WIDTH_PX = 2 * _HEIGHT_PX + 3 * _GAP_PX
_TITLE_PX, _TEXT_PX, _ROW_PX = 30, 24, 62
_INK, _QUIET, _BAR, _TRACK = (27, 31, 36), (90, 100, 112), (11, 102, 168), (223, 227, 232)


class GradCam:
    """Heat maps of a model.

    What a class's logit gains along one place of a map is the slope of the head in that direction,
    taken from both sides: the head is small, and its gradient need not be known.

    Raises:
        TrainingError: the features are not pooled from a map (height, width, channels).
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._logits = loaded.inference.logits
        _, layers, _ = read_layers(loaded.path)
        by_name = {layer.name: layer for layer in layers}
        joined = by_name[FEATURES]
        if loaded.in_onnx:
            raise TrainingError(
                "Grad-CAM needs the maps that features are pooled from, but the encoder of "
                f"{loaded.path} is an .onnx file, of which its features alone are known: use an "
                "encoder of `headstart encoders`"
            )
        pools = [joined]
        if joined.kind == "Concatenate":
            pools = [by_name[name] for name in joined.sources]
        self._blocks: list[_Block] = []
        start = 0
        for pool in pools:
            shape = pool.shapes[0]
            width = prod(shape) if pool.kind == "Flatten" else shape[-1]
            if len(shape) == 3:
                columns = slice(start, start + width)
                self._blocks.append(_Block(pool.sources[0], columns, pool.kind == "Flatten"))
            start += width
        if not self._blocks:
            raise TrainingError(
                "Grad-CAM needs features that are pooled from a map of the image, but "
                f"extract.layers gives vectors of shape {tuple(pools[0].shapes[0])}: choose a "
                "layer that gives a map"
            )
        outputs = {FEATURES: FEATURES, **{block.layer: block.layer for block in self._blocks}}
        self._session = open_onnx(onnx_model(loaded.path, outputs=outputs), usable_cores())
        self._outputs = list(outputs)

    def heat(self, pixels: NDArray[np.uint8], class_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return heat for one class of each image: float32, shape (n, size, size), from 0 to 1.

        The sum over all feature blocks that are pooled from maps, of each in the proportion in
        which it adds to the logit. A class token has no place in the image.

        Args:
            pixels: uint8, shape (n, size, size, 3).
            class_ids: shape (n,); the class that each map explains.
        """
        size = pixels.shape[1]
        heat = np.zeros(pixels.shape[:3], np.float32)
        for row, class_id in enumerate(class_ids):
            given = {"image": pixels[row : row + 1]}
            features, *maps = self._session.run(self._outputs, given)
            for block, values in zip(self._blocks, maps, strict=True):
                channels, height, width = values[0].shape
                places = values[0].reshape(channels, -1).T
                # The slope along a place's channels, taken as if they were pooled: of a flattened
                # map, the mean of the slopes at all places.
                n_times = len(places) if block.flat else 1
                longest = np.linalg.norm(places, axis=1).max() / np.sqrt(n_times)
                step = float(_STEP * np.linalg.norm(features) / max(longest, 1e-12))
                parts = []
                for some in np.array_split(places, -(-places.size * n_times // _MOST_VALUES)):
                    directions = np.zeros((len(some), features.shape[1]), np.float32)
                    directions[:, block.columns] = np.tile(some, n_times) / n_times
                    ahead = self._logits(features + step * directions)[:, class_id]
                    behind = self._logits(features - step * directions)[:, class_id]
                    parts.append(np.maximum((ahead - behind) / (2 * step), 0))
                slopes = np.concatenate(parts)
                # What a pooled block adds is a sum over its places: more where the map is finer.
                scale = len(places) if block.flat else 1
                coarse = Image.fromarray((scale * slopes).reshape(height, width).astype(np.float32))
                large = coarse.resize((size, size), Image.Resampling.BICUBIC)
                heat[row] += np.maximum(np.asarray(large, np.float32), 0)
        scaled: NDArray[np.float32] = heat / np.maximum(heat.max(axis=(1, 2), keepdims=True), 1e-12)
        return scaled


@dataclass(frozen=True)
class _Block:
    """A feature block that is pooled from a map: the map's layer, and where it is in a row."""

    layer: str
    columns: slice
    flat: bool


def overlay(pixels: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Lay heat, shape (height, width), over an image, shape (height, width, 3), made grey."""
    import matplotlib

    grey = pixels.astype(np.float32).mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    colour = matplotlib.colormaps["inferno"](heat)[..., :3].astype(np.float32) * 255
    strength = _STRENGTH * heat[..., None]
    return np.asarray((1 - strength) * grey + strength * colour).round().astype(np.uint8)


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
    """Explain files one after another, writing a sheet of each to `folder`.

    Raises:
        TrainingError: the model's features are not pooled from a map of the image.
    """
    cam = GradCam(loaded)
    taken: set[str] = set()
    for path in paths:
        try:
            pixels = decode_input(path.read_bytes(), loaded.image, max_pixels=max_pixels)
        except (DataError, OSError) as error:
            yield Explanation(path, reason=str(error))
            continue
        _, probabilities = loaded.inference.outputs(pixels)
        order = np.argsort(-probabilities, kind="stable")[:top]
        heat = cam.heat(pixels[None], order[:1].astype(np.int64))[0]
        best = tuple((loaded.classes[i], float(probabilities[i])) for i in order)
        # `cat/001.jpg` becomes `cat-001.png`; a name that is taken gets a number.
        stem = f"{path.parent.name}-{path.stem}".lstrip("-")
        name, number = f"{stem}.png", 2
        while name in taken:
            name, number = f"{stem}-{number}.png", number + 1
        taken.add(name)
        # The sheet: the image beside its heat, its classes below, on white.
        baseline = _HEIGHT_PX + 2 * _GAP_PX + _TITLE_PX  # the title's
        height = baseline + _TITLE_PX + _ROW_PX * len(best)
        sheet = Image.new("RGB", (_WIDTH_PX, height), "white")
        for index, side in enumerate((pixels, overlay(pixels, heat))):
            large = Image.fromarray(side).resize((_HEIGHT_PX, _HEIGHT_PX), Image.Resampling.BICUBIC)
            sheet.paste(large, (_GAP_PX + index * (_HEIGHT_PX + _GAP_PX), _GAP_PX))
        draw = ImageDraw.Draw(sheet)
        title = "What speaks for "
        draw.text((_GAP_PX, baseline), title, fill=_QUIET, font=_font(_TEXT_PX), anchor="ls")
        left = _GAP_PX + draw.textlength(title, font=_font(_TEXT_PX))
        shown, font = _fitted(draw, best[0][0], _TITLE_PX, _WIDTH_PX - _GAP_PX - left)
        draw.text((left, baseline), shown, fill=_INK, font=font, anchor="ls")
        for row, (label, probability) in enumerate(best):
            _bar(draw, baseline + 2 * _TITLE_PX + _ROW_PX * row, label, probability)
        with files.replacing(folder / name) as temporary:
            sheet.save(temporary)
        yield Explanation(path, best, folder / name)


def _bar(draw: ImageDraw.ImageDraw, y: int, name: str, probability: float) -> None:
    """Draw a class, its probability, and a bar below them; `y` is the baseline of the text."""
    left, right = _GAP_PX, _WIDTH_PX - _GAP_PX
    share = f"{100 * probability:.1f} %"
    draw.text((right, y), share, fill=_INK, font=_font(_TEXT_PX), anchor="rs")
    room = right - left - draw.textlength(f"  {share}", font=_font(_TEXT_PX))
    shown, font = _fitted(draw, name, _TEXT_PX, room)
    draw.text((left, y), shown, fill=_INK, font=font, anchor="ls")
    draw.rounded_rectangle((left, y + 10, right, y + 20), 5, fill=_TRACK)
    filled = left + round(probability * (right - left))
    if filled - left >= 2:
        draw.rounded_rectangle((left, y + 10, filled, y + 20), 5, fill=_BAR)


def _fitted(
    draw: ImageDraw.ImageDraw, text: str, size: int, room_px: float
) -> tuple[str, ImageFont.FreeTypeFont]:
    """Return the text, cut at its end where there is no room, and a font that has its letters."""
    font = _font(size, text)
    if draw.textlength(text, font=font) > room_px:
        while text and draw.textlength(f"{text}…", font=font) > room_px:
            text = text[:-1]
        text = f"{text}…"
    return text, font


@cache
def _font(size: int, text: str = "") -> ImageFont.FreeTypeFont:
    """Return the font that comes with matplotlib, or one of this machine that has the letters."""
    import matplotlib
    from matplotlib.font_manager import findSystemFonts
    from matplotlib.ft2font import FT2Font

    own = str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"))
    letters = {ord(letter) for letter in text}
    chosen = own
    if not letters <= FT2Font(own).get_charmap().keys():
        for path in sorted(findSystemFonts()):
            try:
                found = letters <= FT2Font(path).get_charmap().keys()
            except (OSError, RuntimeError):
                continue  # fonts of bitmaps, or damaged ones
            if found:
                chosen = path
                break
    return ImageFont.truetype(chosen, size)
