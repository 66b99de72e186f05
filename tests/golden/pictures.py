"""Sixty pictures of three classes, in every format and mode that cameras and scanners leave."""

import io
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

CLASSES = ("circle", "square", "triangle")
PER_CLASS = 20
_WIDTH, _HEIGHT = 160, 120


def write_golden_pictures(folder: Path) -> None:
    """Write the class folders; the pixels do not depend on the versions of libraries."""
    for label_id, label in enumerate(CLASSES):
        (folder / label).mkdir(parents=True)
        for number in range(PER_CLASS - 4):
            _save(_drawn(label, 100 * label_id + number), folder / label, number)
        _write_copies(folder / label)


def _drawn(label: str, seed: int) -> Image.Image:
    """A shape of any colour, size and place on a noisy slope of grey levels."""
    generator = np.random.default_rng(seed)
    across, down = np.meshgrid(np.linspace(0, 1, _WIDTH), np.linspace(0, 1, _HEIGHT))
    slope = generator.uniform(-60, 60, (2, 3))
    base = generator.uniform(80, 170, 3) + across[..., None] * slope[0] + down[..., None] * slope[1]
    noisy = base + generator.normal(0, 6, base.shape)
    picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    radius = int(generator.integers(22, 45))
    x = int(generator.integers(radius, _WIDTH - radius))
    y = int(generator.integers(radius, _HEIGHT - radius))
    colour = tuple(int(value) for value in generator.integers(0, 256, 3))
    draw = ImageDraw.Draw(picture)
    if label == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    elif label == "square":
        draw.rectangle((x - radius, y - radius, x + radius, y + radius), fill=colour)
    else:
        corners = [(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)]
        draw.polygon(corners, fill=colour)
    return picture


def _save(picture: Image.Image, folder: Path, number: int) -> None:
    """Save the picture in the format and mode of its number."""
    stem = folder / f"{number:02d}"
    kind = number % 11
    if kind == 0:
        picture.save(stem.with_suffix(".png"))
    elif kind == 1:
        picture.save(stem.with_suffix(".jpg"), quality=90)
    elif kind == 2:
        picture.save(stem.with_suffix(".jpg"), quality=75, progressive=True)
    elif kind == 3:
        # The camera was held on its side: a viewer turns the picture by 90 degrees.
        exif = Image.Exif()
        exif[0x0112] = 6
        turned = picture.transpose(Image.Transpose.ROTATE_90)
        turned.save(stem.with_suffix(".jpg"), quality=95, exif=exif)
    elif kind == 4:
        picture.quantize(64).save(stem.with_suffix(".png"))
    elif kind == 5:
        picture.convert("L").save(stem.with_suffix(".png"))
    elif kind == 6:
        alpha = Image.linear_gradient("L").resize(picture.size)
        picture.putalpha(alpha)
        picture.save(stem.with_suffix(".png"))
    elif kind == 7:
        levels = np.asarray(picture.convert("L"), np.uint16) * 257
        Image.fromarray(levels).save(stem.with_suffix(".png"))
    elif kind == 8:
        picture.convert("CMYK").save(stem.with_suffix(".jpg"), quality=95)
    elif kind == 9:
        picture.save(stem.with_suffix(".bmp"))
    else:
        picture.save(stem.with_suffix(".gif"), save_all=True, append_images=[picture])


def _write_copies(folder: Path) -> None:
    """Write a copy and three near copies of earlier pictures: they belong to their groups."""
    shutil.copy(folder / "00.png", folder / "16.png")
    with Image.open(folder / "00.png") as first, Image.open(folder / "11.png") as second:
        ImageOps.mirror(first).save(folder / "17.png")
        again = io.BytesIO()
        second.save(again, "JPEG", quality=80)
        Image.open(again).save(folder / "18.png")
        second.resize((120, 90), Image.Resampling.BICUBIC).save(folder / "19.png")
