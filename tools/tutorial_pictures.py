"""The pictures of docs/tutorial.md: `python tools/tutorial_pictures.py FOLDER`.

Five shapes, 40 pictures each, and what real folders have: two wrong labels, a copy, a broken file.
"""

import math
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

EACH, SIZE_PX = 40, 160
# Name → corners, and how far in every second of them lies.
SHAPES = {
    "circle": (60, 1.0),
    "hexagon": (6, 1.0),
    "square": (4, 1.0),
    "star": (10, 0.45),
    "triangle": (3, 1.0),
}


def picture(shape: str, chance: np.random.Generator, *, is_clear: bool = False) -> Image.Image:
    """Draw a shape of any size and turn, whose colour may be near that of its noisy ground."""
    ground = chance.integers(60, 196, 3)
    contrast = 100 if is_clear else chance.uniform(18, 70)
    colour = np.clip(ground + contrast * chance.choice([-1, 1], 3), 0, 255)
    corners, inner = SHAPES[shape]
    radius, turn = 50 if is_clear else chance.uniform(16, 50), chance.uniform(0, 2 * math.pi)
    x, y = chance.uniform(radius, SIZE_PX - radius, 2)
    outline = []
    for number in range(corners):
        length = radius * (inner if number % 2 else 1.0)
        angle = turn + 2 * math.pi * number / corners
        outline.append((x + length * math.cos(angle), y + length * math.sin(angle)))
    image = Image.new("RGB", (SIZE_PX, SIZE_PX), tuple(map(int, ground)))
    ImageDraw.Draw(image).polygon(outline, fill=tuple(map(int, colour)))
    noise = chance.normal(0, 20, (SIZE_PX, SIZE_PX, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def write_pictures(folder: Path, *, each: int = EACH) -> None:
    """Write a folder for each shape."""
    chance = np.random.default_rng(0)
    for shape in SHAPES:
        (folder / shape).mkdir(parents=True)
        for number in range(each):
            picture(shape, chance).save(folder / shape / f"{number:02}.jpg", quality=90)
    picture("star", chance, is_clear=True).save(folder / "square" / "from-the-web.jpg")
    picture("triangle", chance, is_clear=True).save(folder / "circle" / "IMG_0417.jpg")
    shutil.copy(folder / "hexagon" / "01.jpg", folder / "hexagon" / "01 (copy).jpg")
    (folder / "square" / "broken.jpg").write_bytes(
        (folder / "square" / "02.jpg").read_bytes()[:500]
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python tools/tutorial_pictures.py FOLDER")
    write_pictures(Path(sys.argv[1]))
