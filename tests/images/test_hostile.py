"""Every hostile file that we have, and what a person would expect of it."""

from pathlib import Path

import numpy as np
import pytest

from headstart.images.decode import RejectedImage, decode, resize
from headstart.params.image import ImageParams

# Accepted: height, width, and the mean colour that the right decoding has.
HOPPER = (128, 128, (90, 80, 95))
CAT = (374, 500, (84, 77, 70))
ACCEPTED: dict[str, tuple[int, int, tuple[int, int, int]]] = {
    ".hidden.jpg": CAT,
    "16bit.deflate.tif": (64, 64, (1, 1, 1)),  # 291 to 694 of 65,535 is nearly black
    "apng_delay.png": (64, 128, (255, 0, 0)),
    "avif_hopper.avif": HOPPER,
    "cmyk_cat.jpg": CAT,
    "empty_gps_ifd.jpg": (10, 10, (6, 4, 7)),
    "extreme_tall.png": (5000, 2, (85, 75, 67)),
    "extreme_wide.jpg": (3, 6000, (84, 76, 70)),
    "gif_named.jpg": CAT,
    "gray16.png": (374, 500, (78, 78, 78)),
    "hopper.bmp": HOPPER,
    "hopper.iccprofile.tif": HOPPER,
    "hopper.tif": HOPPER,
    "hopper_16bit_qtables.jpg": HOPPER,
    "hopper_bad_exif.jpg": (500, 500, (125, 125, 125)),
    "hopper_lzma.tif": HOPPER,
    "hopper_orientation_5.jpg": HOPPER,
    "hopper_orientation_6.jpg": HOPPER,
    "i_trns.png": (64, 64, (35, 35, 35)),  # 14 % transparent: white; the rest under 1 % grey
    "icc-after-SOF.jpg": (10, 10, (0, 0, 0)),
    "iss634.gif": (245, 245, (135, 137, 90)),
    "iss634.webp": (245, 245, (135, 137, 90)),
    "l_trns.png": (64, 64, (124, 124, 124)),
    "lab.tif": (10, 10, (254, 255, 254)),
    "name with spaces & ünïcode .jpg": CAT,
    "no_extension": CAT,
    "no_palette_with_transparency.gif": (2, 2, (128, 128, 128)),
    "one_px.png": (1, 1, (200, 10, 10)),
    "pil123rgba.png": (150, 162, (190, 189, 172)),
    "pil_sample_cmyk.jpg": (100, 100, (30, 5, 7)),
    "png_named.jpg": CAT,
    "python.ico": (48, 48, (191, 198, 166)),
    "tiff_16bit_RGBa_target.png": (40, 100, (214, 201, 194)),
    "transparent.webp": (150, 200, (211, 203, 204)),
    "uncompressed_la.png": (128, 128, (241, 241, 241)),
    "xmp_tags_orientation.png": (268, 326, (216, 185, 134)),  # ColorMatch RGB
}
REJECTED = {
    "Thumbs.db": "not_an_image",
    "bmp_b_badwidth.bmp": "too_large",  # a negative width is a huge one
    "bmp_b_reallybig.bmp": "too_large",
    "bomb_30000x30000.png": "too_large",
    "broken.png": "damaged",
    "crash-0e16d3bfb83be87356d026d66919deaefca44dac.tif": "damaged",
    "decompression_bomb.gif": "too_large",
    "html_named.jpg": "not_an_image",
    "png_decompression_dos.png": "decompression_bomb",
    "truncated_end_chunk.png": "truncated",
    "truncated_half_cat.jpg": "truncated",
    "truncated_image.png": "truncated",
    "truncated_jpeg.jpg": "truncated",
    "zero_width.gif": "damaged",
}


@pytest.fixture(scope="module")
def folder(assets: Path) -> Path:
    return assets / "hostile-images"


def test_the_tables_name_every_file(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()} - {"index.tsv"}
    assert names == ACCEPTED.keys() | REJECTED.keys()


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(folder: Path, name: str) -> None:
    pixels = decode((folder / name).read_bytes())
    height, width, colour = ACCEPTED[name]
    assert pixels.shape == (height, width, 3)
    assert np.abs(pixels.mean(axis=(0, 1)) - colour).max() < 1.5


@pytest.mark.parametrize("name", REJECTED)
def test_rejected(folder: Path, name: str) -> None:
    with pytest.raises(RejectedImage) as caught:
        decode((folder / name).read_bytes())
    assert caught.value.code == REJECTED[name]
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("hopper_orientation_5.jpg", "hopper.bmp"),
        ("hopper_orientation_6.jpg", "hopper.bmp"),
        ("avif_hopper.avif", "hopper.bmp"),
        ("hopper.iccprofile.tif", "hopper.bmp"),
        ("hopper_lzma.tif", "hopper.bmp"),
        ("cmyk_cat.jpg", "no_extension"),
        ("gif_named.jpg", "no_extension"),
        ("png_named.jpg", "no_extension"),
        ("iss634.webp", "iss634.gif"),
    ],
)
def test_upright_and_in_the_same_colours(folder: Path, name: str, like: str) -> None:
    small = ImageParams(size=16)
    one, other = (resize(decode((folder / n).read_bytes()), small) for n in (name, like))
    assert np.abs(one.astype(int) - other).max() < 25
