"""Self-contained HTML pages: one file each, no network, light and dark, readable on a phone.

Knows nothing of what a page says; templates lie in `templates/` and extend `base.html.jinja`.
"""

import base64
import io
from functools import cache

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headstart.reports.charts import shortened


def render_page(template: str, **context: object) -> str:
    """Fill `templates/<template>` with `context`; every value is escaped unless marked safe."""
    return _environment().get_template(template).render(**context)


def chart_style() -> str:
    """The look of charts, as CSS, for SVG files that stand alone."""
    return render_page("charts.css.jinja")


def thumbnail_uri(pixels: NDArray[np.uint8], max_side_px: int = 160) -> str:
    """A JPEG data URI of an RGB image, shape (height, width, 3), shrunk to `max_side_px`."""
    image = Image.fromarray(pixels)
    image.thumbnail((max_side_px, max_side_px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


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
    environment.filters["shortened"] = shortened
    return environment


def _percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f} %"
