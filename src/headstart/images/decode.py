"""The one decode: encoded bytes → RGB uint8 pixels → the input size that an encoder sees.

Every part of the project that reads pictures calls these functions, so that an image means the
same numbers in training and in serving. Knows nothing of files, labels or data sets. Safe to call
from several threads.
"""

import io
import re

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features

from headstart.common.errors import DataError, one_line
from headstart.images.colour import to_rgb
from headstart.params.image import ImageParams

DECODE_VERSION = 3
"""Part of every cache key; rises when the same bytes come to mean other pixels."""

MAX_PIXELS = 100_000_000

LEAST_PX = 256
"""JPEGs are decoded at a scale at which both sides are at least this, whatever the input size:
statistics and near duplicates are found in the same pixels."""

# All are recognised by their first bytes. Formats that run other programs (EPS), are read by
# guessing (TGA, PCD) or hold no picture (stubs) are not among them.
FORMATS = (
    "JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000",
    "ICO", "PPM", "PSD", "PCX", "SGI", "QOI",
)  # fmt: skip

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_EXIF_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What undoes a transposition, where it is another one.
_BACK = {
    Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
    Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
}
_FIRST_ON_ITS_SIDE = 5
_MOST_JPEG_SCANS = 100
# As libjpeg finds a marker: neither a stuffed zero nor a fill byte follows its 0xFF.
_JPEG_MARKER = re.compile(rb"\xff([\x01-\xfe])", re.DOTALL)
_SCAN, _END_OF_JPEG = 0xDA, 0xD9
_MARKERS_ALONE = frozenset({*range(0x01, 0xC0), *range(0xD0, 0xD9)})  # no length follows
# A flat picture of any size fits in a few bytes of some formats. Photographs and scans stay far
# below a thousand pixels a byte; bilevel scans, below four thousand.
_MOST_PIXELS_A_BYTE = 1000
_MOST_BILEVEL_PIXELS_A_BYTE = 4000
_HARMLESS_PIXELS = 1 << 24


class RejectedImage(DataError):  # noqa: N818 (it is the image that is at fault)
    """Bytes that are not taken as an image: a short `code`, and a sentence as text."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code

    def __reduce__(self) -> tuple[type["RejectedImage"], tuple[str, str]]:
        return RejectedImage, (self.code, str(self))


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode an image to RGB uint8, shape (height, width, 3), read-only.

    The format is sniffed from the bytes; EXIF or XMP orientation is applied, colours are converted
    to 8-bit sRGB, transparency is laid over white, of an animation the first frame is taken.

    Raises:
        RejectedImage: the bytes are not an image, are damaged, or have more than `max_pixels`
            pixels (checked by the header, before pixels are allocated).
    """
    return np.asarray(decode_image(data, max_pixels=max_pixels)[0])


def resize(pixels: NDArray[np.uint8], image: ImageParams) -> NDArray[np.uint8]:
    """Resize RGB uint8 pixels of any size to the input size, shape (size, size, 3), read-only."""
    return np.asarray(resize_image(Image.fromarray(pixels), image))


def decode_input(
    data: bytes, image: ImageParams, *, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Decode to the input size, shape (size, size, 3), read-only; raises as `decode` does.

    A JPEG is decoded at the smallest of its scales at which both sides are at least that size, and
    at least LEAST_PX; any other image is `resize(decode(data))`.
    """
    picture, _ = decode_image(data, max_pixels=max_pixels, least_px=max(LEAST_PX, image.size))
    return np.asarray(resize_image(picture, image))


def decode_once(
    data: bytes, image: ImageParams, *, max_pixels: int = MAX_PIXELS
) -> tuple[Image.Image, tuple[int, int], NDArray[np.uint8]]:
    """Decode once for both: what `decode_image` gives with LEAST_PX, and `decode_input`.

    Where the input size needs a larger picture, the first is that one reduced.
    """
    least_px = max(LEAST_PX, image.size)
    picture, size = decode_image(data, max_pixels=max_pixels, least_px=least_px)
    pixels = np.asarray(resize_image(picture, image))
    scale = _jpeg_scale(size, least_px)
    factor = _jpeg_scale(size, LEAST_PX) // scale
    # Not where the format, or this file, has no smaller scales.
    if factor > 1 and data[:2] == b"\xff\xd8" and round(size[0] / picture.width) == scale:
        # By the blocks of the file, which begin at a corner that is another one in the picture.
        method = _TRANSPOSE.get(_orientation(Image.open(io.BytesIO(data), formats=FORMATS)))
        if method is not None:
            picture = picture.transpose(_BACK.get(method, method))
        picture = picture.reduce(factor)
        if method is not None:
            picture = picture.transpose(method)
    return picture, size, pixels


def _jpeg_scale(size: tuple[int, int], least_px: int) -> int:
    """By what Pillow's `draft` divides the size of a JPEG."""
    most = min(size) // least_px
    return next(scale for scale in (8, 4, 2, 1) if scale <= max(most, 1))


def decoder_versions() -> dict[str, str]:
    """The libraries whose version may change a pixel: a cache of pixels must not outlive them."""
    jpeg = features.version("libjpeg_turbo") or features.version("jpg")
    return {"pillow": PIL.__version__, "jpeg": str(jpeg)}


def decode_preview(
    data: bytes, max_side_px: int, *, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Decode pixels to show a person, at least `max_side_px` large where the image is."""
    return np.asarray(decode_image(data, max_pixels=max_pixels, least_px=max_side_px)[0])


def decode_image(
    data: bytes, *, max_pixels: int = MAX_PIXELS, least_px: int | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """Decode as `decode` does, to Pillow's RGB image, for callers that continue with Pillow.

    Args:
        least_px: decode a JPEG at a half, a quarter or an eighth, where both sides stay as large.
            Its blocks are transformed to fewer pixels, which are means of the others but for
            rounding, in a fraction of the time.

    Returns:
        The image, and width and height of the whole.
    """
    if not data:
        raise RejectedImage("empty", "The file is empty.")
    try:
        return _decode(data, max_pixels, least_px)
    except RejectedImage:
        raise
    except Image.DecompressionBombError:
        raise RejectedImage(
            "too_large", f"Its header says far more than {max_pixels:,} pixels."
        ) from None
    except MemoryError:
        raise RejectedImage(
            "out_of_memory", "This machine has not enough memory to decode it."
        ) from None
    # Pillow's readers raise nearly anything on hostile bytes: ValueError, KeyError, zlib.error…
    except Exception as error:
        text = one_line(error, 120)
        if "truncated" in text.lower() or isinstance(error, EOFError):
            raise RejectedImage("truncated", f"It ends too early ({text}).") from None
        if "decompress" in text.lower() and "too large" in text.lower():
            raise RejectedImage(
                "decompression_bomb", f"Its metadata unpack to too much ({text})."
            ) from None
        raise RejectedImage("damaged", f"It cannot be decoded ({text}).") from None


def _decode(
    data: bytes, max_pixels: int, least_px: int | None
) -> tuple[Image.Image, tuple[int, int]]:
    # What has to be known of the bytes before Pillow sees them.
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        # Pillow's WebP reader allocates the canvas when it opens a file.
        _check_size(webp_size(data), len(data), max_pixels)
    if data[:2] == b"\xff\xd8":
        _check_jpeg_scans(data)
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > 2 * Image.MAX_IMAGE_PIXELS:
        # Pillow has one limit for the process; it gives way only to a higher one that was asked.
        Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        opened = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise _unidentified(data) from None
    _check_size(opened.size, len(data), max_pixels, is_bilevel=opened.mode == "1")
    with opened as image:
        size = image.size
        if least_px is not None:
            image.draft(None, (least_px, least_px))
        is_scaled = image.size != size
        image.load()
        # An icon may hold what its header did not say.
        _check_size(image.size, len(data), max_pixels, is_bilevel=image.mode == "1")
        orientation = _orientation(image)
        method = _TRANSPOSE.get(orientation)
        rgb = to_rgb(image)
        if method is not None:
            rgb = rgb.transpose(method)
        if not is_scaled:
            return rgb, rgb.size
        return rgb, (size[1], size[0]) if orientation >= _FIRST_ON_ITS_SIDE else size


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    # Broken EXIF raises nearly anything, and does not make the pixels worse.
    except Exception:
        return 1


def _check_size(
    size: tuple[int, int], n_bytes: int, max_pixels: int, *, is_bilevel: bool = False
) -> None:
    width, height = size
    if width * height > max_pixels:
        raise RejectedImage(
            "too_large",
            f"Its header says {width} × {height} pixels; at most {max_pixels:,} are allowed.",
        )
    most = n_bytes * (_MOST_BILEVEL_PIXELS_A_BYTE if is_bilevel else _MOST_PIXELS_A_BYTE)
    if width * height > max(_HARMLESS_PIXELS, most):
        raise RejectedImage(
            "decompression_bomb",
            f"Its header says {width} × {height} pixels, which {n_bytes:,} bytes cannot hold "
            "unless they are all the same.",
        )


def webp_size(data: bytes) -> tuple[int, int]:
    """Return the canvas size by a WebP's header; (0, 0) where it has none (RFC 9649)."""
    kind = data[12:16]
    if kind == b"VP8X" and len(data) >= 30:
        width, height = data[24:27], data[27:30]
        return int.from_bytes(width, "little") + 1, int.from_bytes(height, "little") + 1
    if kind == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and len(data) >= 30:
        width, height = data[26:28], data[28:30]
        return int.from_bytes(width, "little") & 0x3FFF, int.from_bytes(height, "little") & 0x3FFF
    return 0, 0


def _check_jpeg_scans(data: bytes) -> None:
    """Refuse a JPEG with many scans up to its end marker; phones append films behind that.

    Each scan of a progressive JPEG goes over all pixels, and costs an attacker a few bytes.
    """
    n_scans, offset = 0, 2
    while found := _JPEG_MARKER.search(data, offset):
        marker, offset = found[1][0], found.end()
        if marker == _END_OF_JPEG:
            return
        n_scans += marker == _SCAN
        if n_scans > _MOST_JPEG_SCANS:
            raise RejectedImage(
                "decompression_bomb",
                f"A JPEG with more than {_MOST_JPEG_SCANS} scans takes too long to decode.",
            )
        if marker not in _MARKERS_ALONE:
            offset += int.from_bytes(data[offset : offset + 2], "big")


def _unidentified(data: bytes) -> RejectedImage:
    for name in FORMATS:
        accepts = Image.OPEN[name][1] if name in Image.OPEN else None
        if accepts is not None and accepts(data[:16]) is True:
            return RejectedImage("damaged", f"It begins like {name}, but its header is damaged.")
    head, hint = data[:1024].lstrip().lower(), ""
    if head.startswith((b"<!doctype html", b"<html")):
        hint = ": it is a web page"
    elif b"<svg" in head:
        hint = ": it is an SVG drawing; convert it to PNG"
    elif head.startswith(b"%pdf"):
        hint = ": it is a PDF document"
    elif data[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1"):
        hint = ": it is HEIC; convert it to JPEG"
    return RejectedImage("not_an_image", f"It is not an image that can be read{hint}.")


def resize_image(picture: Image.Image, image: ImageParams) -> Image.Image:
    """As `resize`, of Pillow's image."""
    size, resampling = image.size, _RESAMPLING[image.resampling]
    width, height = picture.size
    if image.fit == "stretch":
        return picture.resize((size, size), resampling)
    if image.fit == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return picture.crop((left, top, left + side, top + side)).resize((size, size), resampling)
    scale = size / max(width, height)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    padded = Image.new("RGB", (size, size))
    padded.paste(
        picture.resize(inner, resampling), ((size - inner[0]) // 2, (size - inner[1]) // 2)
    )
    return padded
