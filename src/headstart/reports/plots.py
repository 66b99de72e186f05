"""House style of every plot, and PNGs whose bytes depend on the data alone.

Knows nothing of what is plotted.
"""

import io
from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from headstart import files

# Okabe and Ito's palette: told apart by colour-blind readers, legible on light and dark pages.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8B6F00", "#666666")

_STYLE: Any = {
    "figure.dpi": 120,
    "savefig.dpi": 120,
    "figure.facecolor": "white",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "axes.prop_cycle": cycler(color=COLOURS),
    "legend.frameon": False,
}


def new_figure(width_in: float = 6.4, height_in: float = 4.0) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, outside of pyplot's global state."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        return figure, figure.subplots()


def png_bytes(figure: Figure) -> bytes:
    """The figure as PNG, without the library's version in its metadata."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def save_png(figure: Figure, path: Path) -> None:
    """Write the figure as PNG, whole or not at all."""
    files.write_bytes(path, png_bytes(figure))
