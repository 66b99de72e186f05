"""Self-contained HTML pages: one file each, no network, light and dark, readable on a phone.

Knows nothing of what a page says; templates lie in `templates/` and extend `base.html.jinja`.
"""

import base64
import io
from functools import cache

import jinja2
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from headstart.reports.plots import png_bytes


def render_page(template: str, **context: object) -> str:
    """Fill `templates/<template>` with `context`; every value is escaped unless marked safe."""
    return _environment().get_template(template).render(**context)


def thumbnail_uri(pixels: NDArray[np.uint8], max_side_px: int = 160) -> str:
    """A JPEG data URI of an RGB image, shape (height, width, 3), shrunk to `max_side_px`."""
    image = Image.fromarray(pixels)
    image.thumbnail((max_side_px, max_side_px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=82)
    return _data_uri(buffer.getvalue(), "image/jpeg")


def figure_uri(figure: Figure) -> str:
    """A PNG data URI of a plot."""
    return _data_uri(png_bytes(figure), "image/png")


def _data_uri(data: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("headstart.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = _percent
    return environment


def _percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f} %"
