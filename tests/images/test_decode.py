"""The one decode: what pixels bytes mean."""

import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from headstart.images import colour
from headstart.images.decode import (
    LEAST_PX,
    RejectedImage,
    decode,
    decode_image,
    decode_input,
    decode_once,
    decode_preview,
    resize,
    webp_size,
)
from headstart.params.image import ImageParams
from tests.images.pictures import encode, picture, quadrants


def rejection(data: bytes, **options: Any) -> tuple[str, str]:
    with pytest.raises(RejectedImage) as caught:
        decode(data, **options)
    return caught.value.code, str(caught.value)


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


TURNED = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: p[::-1].transpose(1, 0, 2),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: p.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    options: dict[str, Any] = {} if kind in ("PNG", "TIFF") else {"quality": 100}
    image = Image.fromarray(quadrants())
    pixels = decode(encode(image, kind, exif=oriented(orientation), **options))
    expected = TURNED[orientation](quadrants())
    assert pixels.shape == expected.shape
    for row, column in ((4, 4), (4, -5), (-5, 4), (-5, -5)):
        found = pixels[row, column].astype(int)
        assert np.abs(found - expected[row, column]).max() < 40


def test_broken_exif_is_survived() -> None:
    data = encode(picture(1), "JPEG", exif=oriented(6))
    broken = data.replace(b"Exif\0\0MM", b"Exif\0\0XX").replace(b"Exif\0\0II", b"Exif\0\0XX")
    assert broken != data
    assert decode(broken).shape == (48, 64, 3)


MODES = ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_the_same_grey_picture(mode: str) -> None:
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (16, 1))
    if mode == "1":
        ramp = np.where(ramp < 128, 0, 255).astype(np.uint8)
    grey = Image.fromarray(ramp)
    if mode == "I;16":
        image = Image.fromarray(ramp.astype(np.uint16) * 257)
    elif mode in ("I", "F"):
        image = Image.fromarray(ramp.astype({"I": np.int32, "F": np.float32}[mode]))
    elif mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        transform = ImageCms.buildTransform(*profiles, "RGB", "LAB")
        image = transform.apply(grey.convert("RGB"))
    else:
        image = grey.convert(mode) if mode == "P" else grey.convert("RGB").convert(mode)
    kind = "PNG" if mode in ("P", "RGBA", "LA") else "TIFF"
    pixels = decode(encode(image, kind))
    assert np.abs(pixels.astype(int) - ramp[..., None]).max() <= 3


def test_float_pictures_between_0_and_1_and_beyond_65535() -> None:
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    expected = np.rint(ramp * 255)[..., None]
    for values in (ramp, ramp * 1e6, ramp * 2 - 1):
        pixels = decode(encode(Image.fromarray(values.astype(np.float32)), "TIFF"))
        assert np.abs(pixels - expected).max() <= 1
    nan = encode(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF")
    assert decode(nan).max() == 0


def test_transparency_is_laid_over_white() -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2, :, 3] = 255
    pixels[2, :, 3] = 128
    for kind in ("PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        decoded = decode(encode(Image.fromarray(pixels), kind, **options))
        assert decoded[0, 0].tolist() == [0, 0, 0]
        assert abs(int(decoded[2, 0, 0]) - 127) <= 1
        assert decoded[3, 0].tolist() == [255, 255, 255]


def test_transparent_colours_of_palette_grey_and_16_bit_pictures() -> None:
    palette = Image.fromarray(np.array([[0, 1], [1, 2]], np.uint8)).convert("P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    grey = Image.fromarray(np.array([[0, 1], [1, 2]], np.uint8))
    wide = Image.fromarray(np.array([[0, 1], [1, 2]], np.uint16))
    for image in (palette, grey, wide):
        decoded = decode(encode(image, "PNG", transparency=1))
        assert decoded[0, 1].tolist() == [255, 255, 255]
        assert decoded[1, 1].tolist() != [255, 255, 255]


def swapped_profile() -> bytes:
    """An sRGB profile whose red and green primaries have changed places."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (count,) = struct.unpack(">I", data[128:132])
    tags = [132 + 12 * i for i in range(count)]
    places = {bytes(data[tag : tag + 4]): tag for tag in tags}
    red, green = places[b"rXYZ"], places[b"gXYZ"]
    data[red : red + 4], data[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(data)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_icc_profiles_are_applied(mode: str) -> None:
    red = Image.new(mode, (4, 4), "red")
    assert decode(encode(red))[0, 0].tolist() == [255, 0, 0]
    green = decode(encode(red, icc_profile=swapped_profile()))[0, 0].astype(int)
    assert np.abs(green - [0, 255, 0]).max() <= 2


def test_profiles_that_say_nothing_are_ignored() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = picture(3)
    plain = decode(encode(image))
    for profile in (srgb, b"no profile at all", swapped_profile()[:300]):
        assert np.array_equal(decode(encode(image, icc_profile=profile)), plain)
    grey = encode(image.convert("L"), icc_profile=swapped_profile())
    assert np.array_equal(decode(grey), decode(encode(image.convert("L"))))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(decode(data)[8, 8].astype(int) - [255, 0, 0]).max() <= 4


def png(width: int, height: int, body: bytes = b"", **chunks: bytes) -> bytes:
    """A PNG of any header: 8-bit grey, with the given extra chunks before its data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    extra = b"".join(chunk(name.encode(), data) for name, data in chunks.items())
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            extra,
            chunk(b"IDAT", zlib.compress(body)),
            chunk(b"IEND", b""),
        ]
    )


def test_sizes_are_refused_by_header() -> None:
    code, sentence = rejection(png(12_000, 12_000))
    assert code == "too_large"
    assert sentence == ("Its header says 12000 × 12000 pixels; at most 100,000,000 are allowed.")
    assert rejection(png(60_000, 60_000))[0] == "too_large"
    assert rejection(encode(picture(1)), max_pixels=100)[0] == "too_large"
    canvas = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + b"\xff\x3f\0" * 2
    webp = b"RIFF" + struct.pack("<I", 4 + len(canvas)) + b"WEBP" + canvas
    assert rejection(webp)[0] == "too_large"


def test_more_pixels_than_pillow_allows_are_read_when_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = encode(picture(1))
    with warnings.catch_warnings():
        assert decode(data, max_pixels=64 * 48).shape == (48, 64, 3)
    assert rejection(data, max_pixels=64 * 48 - 1)[0] == "too_large"


def test_bombs_that_are_not_large() -> None:
    text = png(1, 1, b"\0\0", zTXt=b"a\0\0" + zlib.compress(b"x" * 80_000_000))
    assert rejection(text)[0] == "decompression_bomb"
    data = encode(picture(1), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    code, sentence = rejection(data[:-2] + scan * 200 + data[-2:])
    assert code == "decompression_bomb"
    assert "scans" in sentence
    assert rejection(data[:-2] + scan * 200)[0] == "decompression_bomb"  # without an end


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": oriented(1)}])
def test_what_follows_the_end_of_a_jpeg_is_not_counted(options: dict[str, Any]) -> None:
    data = encode(picture(1), "JPEG", **options)
    film = np.random.default_rng(0).bytes(10_000_000)
    assert film.count(b"\xff\xda") > 100
    assert np.array_equal(decode(data + film), decode(data))


def test_the_scans_of_a_jpeg_in_its_metadata_are_not_counted() -> None:
    note = b"\xff\xfe" + struct.pack(">H", 2 + 400) + b"\xff\xda" * 200
    data = encode(picture(1), "JPEG")
    assert np.array_equal(decode(data[:2] + note + data[2:]), decode(data))


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (b"", "empty", "The file is empty."),
        (b"\0" * 100, "not_an_image", "It is not an image that can be read."),
        (b"  <!DOCTYPE html><html>", "not_an_image", "it is a web page"),
        (b"<svg xmlns=''></svg>", "not_an_image", "SVG"),
        (b"%PDF-1.7 ...", "not_an_image", "PDF"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 20, "not_an_image", "HEIC; convert it to JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not_an_image", ""),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "damaged", "It begins like PNG"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 50, "damaged", "It begins like JPEG"),
        (b"GIF89a" + b"\0" * 50, "damaged", "It begins like GIF"),
        (encode(picture(5), "JPEG")[:-200], "truncated", "It ends too early"),
        (encode(picture(5), "PNG")[:-200], "truncated", "It ends too early"),
    ],
)
def test_reasons_for_a_person(data: bytes, code: str, words: str) -> None:
    found, sentence = rejection(data)
    assert found == code
    assert words in sentence
    assert "0x" not in sentence  # no addresses: the list has the same bytes every time


SIZES = [(64, 48), (48, 64), (1, 1), (500, 3), (3, 500), (224, 224), (31, 77)]


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("resampling", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_decode_square_is_decode_then_resize(fit: Any, resampling: Any) -> None:
    params = ImageParams(size=32, fit=fit, resampling=resampling)
    for seed, size in enumerate(SIZES):
        # a JPEG of twice the size and more is decoded at a fraction of it
        data = encode(picture(seed, size), "PNG" if min(size) >= 64 else "JPEG")
        square = decode_input(data, params)
        assert square.shape == (32, 32, 3)
        assert square.dtype == np.uint8
        assert np.array_equal(square, resize(decode(data), params))


@pytest.mark.parametrize("size", [(512, 512), (1000, 700), (1023, 767), (4000, 3000), (300, 2500)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_decoded_at_a_fraction_to_nearly_the_same_pixels(
    size: tuple[int, int], orientation: int
) -> None:
    smooth = Image.fromarray(_landscape(*size))
    data = encode(smooth, "JPEG", quality=95, exif=oriented(orientation))
    params = ImageParams(size=100)
    scaled, whole = decode_image(data, least_px=100)
    assert whole == (size if orientation == 1 else size[::-1])
    assert min(scaled.size) >= 100
    assert min(scaled.size) < 200 or scaled.size[0] * 8 <= whole[0] + 7
    difference = decode_input(data, params).astype(int) - resize(decode(data), params)
    mean = np.abs(difference).mean()
    assert mean < 2
    # nor is there a seam where blocks are cut off by the border
    assert np.abs(difference[[0, -1]]).mean() < mean + 1
    assert np.abs(difference[:, [0, -1]]).mean() < mean + 1


@pytest.mark.parametrize("size", [(60, 40), (512, 512), (1100, 767), (2048, 3000), (300, 2500)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 7, 8])
def test_once_is_as_decoding_twice(size: tuple[int, int], kind: str, orientation: int) -> None:
    data = encode(Image.fromarray(_landscape(*size)), kind, exif=oriented(orientation))
    alone, whole = decode_image(data, least_px=LEAST_PX)
    for size_px in (100, 224, 300, 600, 1200):
        params = ImageParams(size=size_px)
        found, found_size, pixels = decode_once(data, params)
        assert (found.size, found_size) == (alone.size, whole)
        np.testing.assert_array_equal(pixels, decode_input(data, params))
        # Where the input needs more pixels, this is a mean of those.
        difference = np.abs(np.asarray(found, np.int16) - np.asarray(alone, np.int16))
        assert difference.mean() < 1
        if size_px <= LEAST_PX or kind == "PNG":
            assert difference.max() == 0


def test_a_large_jpeg_that_is_cut_off_is_rejected_at_any_scale() -> None:
    data = encode(Image.fromarray(_landscape(1600, 1200)), "JPEG", quality=90)
    for share in (0.2, 0.5, 0.9, 0.999):
        for least in (None, 100, 256):
            with pytest.raises(RejectedImage) as caught:
                decode_image(data[: int(share * len(data))], least_px=least)
            assert caught.value.code == "truncated"


def _landscape(width: int, height: int) -> NDArray[np.uint8]:
    """Waves of every length, and noise as of a camera; uint8 (height, width, 3)."""
    chance = np.random.default_rng(width)
    y, x = np.mgrid[:height, :width]
    waves = [
        np.sin(x * 2 * np.pi / length + y / length * k)
        for k, length in enumerate((width, width / 7, 60, 9), start=1)
    ]
    grey = 128 + 25 * sum(waves)
    noisy = grey[..., None] * [1, 0.9, 0.7] + chance.normal(0, 4, (height, width, 3))
    return np.asarray(np.clip(noisy, 0, 255), np.uint8)


def test_crop_takes_the_centre_and_pad_adds_black() -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200
    assert resize(wide, ImageParams(size=16, fit="crop")).min() == 200
    padded = resize(wide, ImageParams(size=60, fit="pad"))
    assert padded[:19].max() == 0
    assert padded[41:].max() == 0
    assert padded[30, 30].tolist() == [200, 200, 200]


def test_threads_agree_with_one_another() -> None:
    profile = swapped_profile()
    files = [encode(picture(i), "JPEG", icc_profile=profile) for i in range(40)]
    params = ImageParams(size=32)

    def square(data: bytes) -> NDArray[np.uint8]:
        return decode_input(data, params)

    alone = [square(data) for data in files]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            together = list(pool.map(square, files))
            assert all(map(np.array_equal, alone, together))


def test_a_preview_is_smaller_and_looks_the_same() -> None:
    data = encode(picture(2, (1600, 1200)), "JPEG", quality=95, exif=oriented(6))
    preview = decode_preview(data, 96)
    assert preview.shape[0] > preview.shape[1] >= 96
    assert preview.shape[0] <= 400
    small = ImageParams(size=32)
    difference = resize(preview, small).astype(int) - resize(decode(data), small)
    assert np.abs(difference).mean() < 3


def test_a_rejection_crosses_processes() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(RejectedImage("empty", "The file is empty.")))
    assert (error.code, str(error)) == ("empty", "The file is empty.")


def test_truncation_at_any_length_is_a_rejection_or_the_whole_picture() -> None:
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF"):
        data = encode(picture(4, (32, 24)), kind)
        for length in range(0, len(data), max(1, len(data) // 40)):
            try:
                shape: tuple[int, ...] = decode(data[:length]).shape
            except RejectedImage:
                continue
            assert shape == (24, 32, 3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "CMYK", "F"])
def test_large_images_are_converted_in_bands_to_the_same_pixels(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = picture(6, (40, 30)).convert("L" if mode == "F" else mode)
    kind = "TIFF" if mode in ("CMYK", "F") else "PNG"
    image = image.convert(mode)
    options = {"icc_profile": swapped_profile()} if mode == "RGB" else {}
    data = encode(image, kind, **options)
    whole = decode(data)
    monkeypatch.setattr(colour, "_PIXELS_AT_ONCE", 7 * 40)
    assert np.array_equal(decode(data), whole)


def test_flat_pictures_of_absurd_size_are_bombs() -> None:
    flat = Image.new("RGB", (5000, 5000))
    for kind, options in (("WEBP", {"lossless": True}), ("AVIF", {"speed": 10})):
        code, sentence = rejection(encode(flat, kind, **options))
        assert code == "decompression_bomb"
        assert "5000 × 5000 pixels" in sentence
    page = np.ones((5000, 5000), dtype=bool)
    page[500:4500:100, 400:4600:3] = False  # forty dotted lines: a scan, nearly empty
    scan = encode(Image.fromarray(page), "TIFF", compression="group4")
    assert decode(scan).shape == (5000, 5000, 3)


@pytest.mark.parametrize("options", [{"quality": 80}, {"lossless": True}, {"exif": oriented(6)}])
def test_the_size_in_a_webp_header(options: dict[str, Any]) -> None:
    for size in ((64, 48), (1, 1), (300, 1000)):
        assert webp_size(encode(picture(1, size), "WEBP", **options)) == size
