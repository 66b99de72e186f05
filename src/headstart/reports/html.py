"""Self-contained HTML pages: one file each, no network, light and dark, readable on a phone.

Knows nothing of what a page says; templates lie in `templates/` and extend `base.html.jinja`.
"""

import base64
import io

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headstart.reports.charts import shortened

THUMBNAIL_PX = 160


def render_page(template: str, **context: object) -> str:
    """Fill `templates/<template>` with `context`; every value is escaped unless marked safe."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("headstart.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda value, digits=1: f"{100 * value:.{digits}f} %"
    environment.filters["shortened"] = shortened
    return environment.get_template(template).render(**context)


def thumbnail_uri(pixels: NDArray[np.uint8], max_side_px: int = THUMBNAIL_PX) -> str:
    """Return a JPEG data URI of an RGB image, shape (height, width, 3), shrunk to `max_side_px`."""
    image = Image.fromarray(pixels)
    image.thumbnail((max_side_px, max_side_px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
