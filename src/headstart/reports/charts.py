"""Charts as inline SVG, coloured by the page: sharp at any size, light and dark, no script.

The look is in templates/charts.css.jinja. Knows nothing of what is drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Range = tuple[float, float]

N_COLOURS = 8
_WIDTH, _HEIGHT = 460, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 42


@dataclass(frozen=True)
class Series:
    """Points that belong together; empty points (NaN) are left out.

    Attributes:
        weights: of the points; a dot's area grows with its weight. None: all alike.
    """

    name: str
    x: Floats
    y: Floats
    note: str = ""
    weights: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Axis:
    """A linear axis; as `percent`, its ticks are percentages."""

    label: str
    range: Range = (0.0, 1.0)
    percent: bool = True

    def place(self, values: Floats, low_px: float, high_px: float) -> Floats:
        """Values as pixels."""
        low, high = self.range
        return low_px + (values - low) / (high - low) * (high_px - low_px)

    def ticks(self) -> list[float]:
        """Four to seven round values."""
        low, high = self.range
        rough = (high - low) / 5
        power = 10.0 ** np.floor(np.log10(rough))
        step = float(min((m * power for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - rough)))
        first = np.ceil(low / step - 1e-9) * step
        # Adding zero turns minus zero into zero.
        return [float(v) + 0.0 for v in np.arange(first, high + step * 1e-6, step).round(12)]

    def text(self, value: float) -> str:
        return f"{100 * value:.3g}" if self.percent else f"{value:.3g}"


@dataclass(frozen=True)
class Chart:
    """Lines or dots over two axes.

    Attributes:
        dots: draw a dot at each point; `lines`: join the points.
        diagonal: draw y = x as a reference.
        marked: rows of each series, drawn as rings (errors in a map of points).
    """

    x: Axis
    y: Axis
    series: Sequence[Series]
    title: str
    lines: bool = True
    dots: bool = False
    diagonal: bool = False
    marked: Sequence[NDArray[np.int64]] = field(default_factory=list)
    legend: bool = True

    @property
    def _is_weighted(self) -> bool:
        return any(series.weights is not None for series in self.series)

    def svg(self) -> Markup:
        """The chart with its legend, as a figure."""
        body = [*self._grid(), *(self._series(i, s) for i, s in enumerate(self.series))]
        look = "chart weighted" if self._is_weighted else "chart"
        picture = (
            f'<svg class="{look}" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
            f'aria-label="{escape(self.title)}">{"".join(body)}</svg>'
        )
        legend = self._legend() if self.legend and len(self.series) > 1 else ""
        # Every text that comes from data is escaped where it is put in.
        return Markup(f'<figure class="chart-box">{picture}{legend}</figure>')

    def _grid(self) -> list[str]:
        left, right, top, bottom = _LEFT, _WIDTH - _RIGHT, _TOP, _HEIGHT - _BOTTOM
        parts = []
        for value in self.x.ticks():
            x = _px(self.x.place(np.array(value), left, right))
            parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>')
            parts.append(
                f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{self.x.text(value)}</text>'
            )
        for value in self.y.ticks():
            y = _px(self.y.place(np.array(value), bottom, top))
            parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>')
            at = f'x="{left - 7}" y="{y}" dy=".35em" text-anchor="end"'
            parts.append(f"<text {at}>{self.y.text(value)}</text>")
        middle = (top + bottom) / 2
        parts.append(
            f'<text class="axis" x="{(left + right) / 2}" y="{_HEIGHT - 6}" '
            f'text-anchor="middle">{escape(self.x.label)}</text>'
            f'<text class="axis" transform="translate(12 {middle}) rotate(-90)" '
            f'text-anchor="middle">{escape(self.y.label)}</text>'
        )
        if self.diagonal:
            both = np.array([max(self.x.range[0], self.y.range[0]), 1.0])
            points = _points(self.x.place(both, left, right), self.y.place(both, bottom, top))
            parts.append(f'<polyline class="diagonal" points="{points}"/>')
        return parts

    def _series(self, index: int, series: Series) -> str:
        known = ~(np.isnan(series.x) | np.isnan(series.y))
        x = self.x.place(series.x, _LEFT, _WIDTH - _RIGHT)
        y = self.y.place(series.y, _HEIGHT - _BOTTOM, _TOP)
        label = escape(f"{series.name} {series.note}".strip())
        marked = set(self.marked[index].tolist()) if self.marked else set()
        parts = [f'<g class="{colour_class(index)}"><title>{label}</title>']
        if self.lines:
            parts.append(f'<polyline points="{_points(x[known], y[known])}"/>')
        if self.dots:
            radius = _radii(series)
            for row in np.flatnonzero(known):
                parts.append(_dot(index, x[row], y[row], radius[row]))
                if row in marked:
                    at = f'cx="{_px(x[row])}" cy="{_px(y[row])}"'
                    parts.append(f'<circle class="ring" {at} r="{_px(radius[row] + 3)}"/>')
        return "".join([*parts, "</g>"])

    def _legend(self) -> str:
        shape = "" if self.lines else " shape"
        items = [
            f'<li class="{colour_class(index)}{shape}"><span class="key"></span>'
            f"{escape(series.name)}"
            f"{f' <small>{escape(series.note)}</small>' if series.note else ''}</li>"
            for index, series in enumerate(self.series)
        ]
        return f'<ul class="legend">{"".join(items)}</ul>'


def colour_class(index: int) -> str:
    """The CSS class of a series: eight colours, then the same dashed."""
    return f"s{index % N_COLOURS}" + (" dashed" if index // N_COLOURS % 2 else "")


def _radii(series: Series) -> Floats:
    """Radius of each dot in pixels."""
    if series.weights is None:
        return np.full(len(series.x), 3.2)
    share = series.weights / max(int(series.weights.max()), 1)
    return 2.0 + 6.0 * np.sqrt(share)


def _dot(index: int, x: np.float64, y: np.float64, radius: np.float64) -> str:
    """A circle for the first eight series, a diamond for the next eight, and so on."""
    if index // N_COLOURS % 2 == 0:
        return f'<circle class="dot" cx="{_px(x)}" cy="{_px(y)}" r="{_px(radius)}"/>'
    r = radius * 1.25
    corners = [(x, y - r), (x + r, y), (x, y + r), (x - r, y)]
    points = " ".join(f"{_px(a)},{_px(b)}" for a, b in corners)
    return f'<polygon class="dot" points="{points}"/>'


def _points(x: Floats, y: Floats) -> str:
    return " ".join(f"{_px(a)},{_px(b)}" for a, b in zip(x, y, strict=True))


def _px(value: Floats | float) -> str:
    return f"{float(value):.1f}".removesuffix(".0")
