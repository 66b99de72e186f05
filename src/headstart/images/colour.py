"""Any pixel mode that Pillow reads → 8-bit sRGB: depth, palettes, transparency, ICC profiles."""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

# Colour spaces of ICC profiles, and the modes whose numbers they explain.
_PROFILE_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}


_PIXELS_AT_ONCE = 1 << 22

Levels = tuple[float, float]


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a loaded image to mode RGB: sRGB colours, transparency over white.

    A large image is converted in bands, so that it is in memory twice at most.
    """
    levels = _levels(image)
    width, height = image.size
    if width * height <= _PIXELS_AT_ONCE:
        return _convert(image, levels)
    rgb = Image.new("RGB", image.size)
    rows = max(1, _PIXELS_AT_ONCE // width)
    for top in range(0, height, rows):
        band = image.crop((0, top, width, min(top + rows, height)))
        rgb.paste(_convert(band, levels), (0, top))
    return rgb


def _convert(image: Image.Image, levels: Levels) -> Image.Image:
    colours, alpha = _split_alpha(image, levels)
    rgb = _apply_profile(colours, image.info.get("icc_profile"))
    if rgb is None:
        rgb = colours if colours.mode == "RGB" else colours.convert("RGB")
    if alpha is None or alpha.getextrema() == (255, 255):
        return rgb
    white = Image.new("RGB", rgb.size, "white")
    white.paste(rgb, mask=alpha)
    return white


def _split_alpha(image: Image.Image, levels: Levels) -> tuple[Image.Image, Image.Image | None]:
    """8-bit colours in mode RGB, L, CMYK, LAB or the like, and the alpha channel if any."""
    if _is_wide(image):
        return _from_wide(image, levels)
    if image.mode == "RGBa":
        image = image.convert("RGBA")
    elif image.mode == "La":
        image = image.convert("LA")
    elif image.mode == "RGBX" or not image.has_transparency_data:
        return image, None
    if image.mode == "LA":
        return image.getchannel("L"), image.getchannel("A")
    rgba = image.convert("RGBA")
    return rgba.convert("RGB"), rgba.getchannel("A")


def _is_wide(image: Image.Image) -> bool:
    return image.mode.startswith("I") or image.mode == "F"


def _from_wide(image: Image.Image, levels: Levels) -> tuple[Image.Image, Image.Image | None]:
    """16-bit, 32-bit and float grey to 8 bits, with the transparent value as alpha."""
    values = np.asarray(image)
    transparent = image.info.get("transparency")
    alpha = None
    if isinstance(transparent, int):
        alpha = Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
    low, high = levels
    scaled = np.nan_to_num(values.astype(np.float32), nan=low, posinf=high, neginf=low)
    scaled = (scaled - low) * (255.0 / (high - low))
    return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8)), alpha


def _levels(image: Image.Image) -> Levels:
    """Which values of a 16-bit, 32-bit or float picture are black and white.

    For 32 bits no format says it: white is the smallest of 1 (floats), 255 and 65535 that holds all
    the values; if none does, black and white are the picture's own extremes.
    """
    if not _is_wide(image):
        return 0.0, 255.0
    if image.mode != "F" and (image.mode != "I" or image.format in ("PPM", "PNG")):
        return 0.0, 65535.0
    values = np.asarray(image)
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    for white in (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0):
        if low >= 0 and high <= white:
            return 0.0, white
    return (low, high) if high > low else (low, low + 1.0)


def _apply_profile(colours: Image.Image, profile: bytes | None) -> Image.Image | None:
    """Colours through an ICC profile to sRGB; none if it has none, or one that says nothing."""
    if not profile or not isinstance(profile, bytes):
        return None
    mode = "L" if colours.mode == "1" else colours.mode
    transform = _transform(profile, mode)
    if transform is None:
        return None
    try:
        return transform.apply(colours if colours.mode == mode else colours.convert(mode))
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform to sRGB; none for a broken profile, one of other modes, or sRGB itself."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if _PROFILE_MODES.get(opened.profile.xcolor_space) != mode:
            return None
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        transform = ImageCms.ImageCmsTransform(
            opened, srgb, mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC
        )
        return None if _is_identity(transform, mode) else transform
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _is_identity(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether colours over the whole cube move by at most one step: most profiles are sRGB."""
    if mode == "CMYK":
        return False
    steps = np.linspace(0, 255, 9, dtype=np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(9, 81, 3)
    if mode == "L":
        cube = np.repeat(cube[..., :1], 3, axis=-1)
    sample = Image.fromarray(cube).convert(mode)
    moved = np.asarray(transform.apply(sample)).astype(np.int16) - cube
    return bool(np.abs(moved).max() <= 1)
