"""Any pixel mode that Pillow reads → 8-bit sRGB: depth, palettes, transparency, ICC profiles."""

import contextlib
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
    # Which values of a 16-bit, 32-bit or float picture are black and white. For 32 bits no format
    # says it: white is the smallest of 1 (floats), 255 and 65535 that holds all the values; if none
    # does, black and white are the picture's own extremes.
    levels = 0.0, 65535.0
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PPM", "PNG")):
        values = np.asarray(image)
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        whites = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        white = next((white for white in whites if low >= 0 and high <= white), None)
        own = (low, high if high > low else low + 1.0)
        levels = own if white is None else (0.0, white)
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
    # Colours of 8 bits, in mode RGB, L, CMYK, LAB or the like, and the alpha channel if any.
    colours, alpha = image, None
    if _is_wide(image):
        values = np.asarray(image)
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            alpha = Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
        low, high = levels
        scaled = np.nan_to_num(values.astype(np.float32), nan=low, posinf=high, neginf=low)
        scaled = (scaled - low) * (255.0 / (high - low))
        colours = Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))
    elif image.mode in ("La", "LA"):
        both = image.convert("LA")
        colours, alpha = both.getchannel("L"), both.getchannel("A")
    elif image.mode == "RGBa" or (image.mode != "RGBX" and image.has_transparency_data):
        rgba = image.convert("RGBA")
        colours, alpha = rgba.convert("RGB"), rgba.getchannel("A")

    # A profile that is broken, or of other modes, says nothing.
    rgb = None
    profile = image.info.get("icc_profile")
    if profile and isinstance(profile, bytes):
        mode = "L" if colours.mode == "1" else colours.mode
        transform = _transform(profile, mode)
        if transform is not None:
            with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError):
                rgb = transform.apply(colours if colours.mode == mode else colours.convert(mode))
    if rgb is None:
        rgb = colours if colours.mode == "RGB" else colours.convert("RGB")

    if alpha is None or alpha.getextrema() == (255, 255):
        return rgb
    white = Image.new("RGB", rgb.size, "white")
    white.paste(rgb, mask=alpha)
    return white


def _is_wide(image: Image.Image) -> bool:
    return image.mode.startswith("I") or image.mode == "F"


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform to sRGB; none for a broken profile, one of other modes, or sRGB."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if _PROFILE_MODES.get(opened.profile.xcolor_space) != mode:
            return None
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        transform = ImageCms.ImageCmsTransform(
            opened, srgb, mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC
        )
        if mode == "CMYK":
            return transform
        # Most profiles are sRGB: colours over the whole cube move by at most one step.
        steps = np.linspace(0, 255, 9, dtype=np.uint8)
        cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(9, 81, 3)
        if mode == "L":
            cube = np.repeat(cube[..., :1], 3, axis=-1)
        moved = transform.apply(Image.fromarray(cube).convert(mode))
        is_srgb = np.abs(np.asarray(moved).astype(np.int16) - cube).max() <= 1
        return None if is_srgb else transform
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
