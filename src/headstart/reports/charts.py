"""Charts as SVG, coloured by the page: sharp at any size, light and dark, no script.

The look is in templates/charts.css.jinja. Knows nothing of what is drawn.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Range = tuple[float, float]
Polygon = tuple[tuple[float, float], ...]

N_COLOURS = 8
_RIGHT, _TOP, _BOTTOM = 14, 10, 46
_MOST_IN_THE_OPEN = 12
_LINE_PX, _LETTER_PX = 18, 7.0
_RADIUS = 3.6
# What XML cannot hold, not even escaped.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def _polygon(n: int, turn: float, *radii: float) -> Polygon:
    """Return a polygon of n corners; of two radii in turn it is a star."""
    angles = [turn + 2 * pi * i / n for i in range(n)]
    lengths = [radii[i % len(radii)] for i in range(n)]
    return tuple((r * cos(a), r * sin(a)) for r, a in zip(lengths, angles, strict=True))


# Marks of radius 1: a circle, which has no corners, and what differs from it and the others.
SHAPES: tuple[Polygon, ...] = (
    (),
    _polygon(4, 0, 1.35),
    _polygon(3, -pi / 2, 1.4),
    _polygon(4, pi / 4, 1.25),
    _polygon(3, pi / 2, 1.4),
    _polygon(8, 0, 1.6, 0.55),
    _polygon(10, -pi / 2, 1.5, 0.65),
    _polygon(8, pi / 4, 1.6, 0.55),
)


@dataclass(frozen=True)
class Series:
    """Points that belong together; empty points (NaN) are left out.

    Attributes:
        weights: of the points; a dot's area grows with its weight. None: all alike.
        strengths: opacity of each dot, 0 to 1. None: all alike.
        line: join the points; `dots`: draw a mark at each.
        rings: rows that are drawn with a ring around them.
    """

    name: str
    x: Floats
    y: Floats
    note: str = ""
    weights: NDArray[np.int64] | None = None
    strengths: Floats | None = None
    line: bool = True
    dots: bool = False
    rings: Sequence[int] = ()


@dataclass(frozen=True)
class Axis:
    """A linear axis; as `percent`, its ticks are percentages.

    Attributes:
        marks: ticks and their texts, where they are no round numbers.
    """

    label: str
    range: Range = (0.0, 1.0)
    percent: bool = True
    marks: Sequence[tuple[float, str]] | None = None

    def pixels(self, values: Floats, low_px: float, high_px: float) -> Floats:
        """Return values as pixels."""
        low, high = self.range
        return low_px + (values - low) / (high - low) * (high_px - low_px)

    def ticks(self) -> list[tuple[float, str]]:
        """Return four to seven round values, and what to write there."""
        if self.marks is not None:
            return list(self.marks)
        low, high = self.range
        rough = (high - low) / 5
        power = 10.0 ** np.floor(np.log10(rough))
        step = float(min((m * power for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - rough)))
        first = np.ceil(low / step - 1e-9) * step
        # Adding zero turns minus zero into zero.
        values = [float(v) + 0.0 for v in np.arange(first, high + step * 1e-6, step).round(12)]
        return [(v, f"{100 * v:.3g}" if self.percent else f"{v:.4g}") for v in values]


@dataclass(frozen=True)
class Chart:
    """Lines or dots over two axes.

    Attributes:
        diagonal: draw y = x as a reference.
        labelled: write the name of each series at its middle, where there is room.
        size_px: width and height without a legend.
    """

    x: Axis
    y: Axis
    series: Sequence[Series]
    title: str
    diagonal: bool = False
    labelled: bool = False
    legend: bool = True
    size_px: tuple[int, int] = (420, 300)

    def svg(self) -> Markup:
        """Return the chart with its legend, as a figure of a page."""
        width, height = self.size_px
        picture = (
            f'<svg class="{self._look}" viewBox="0 0 {width} {height}" role="img" '
            f'aria-label="{escape(self.title)}">{self._body()}</svg>'
        )
        legend = ""
        if self.legend and len(self.series) > 1:
            items = [
                f'<li><svg class="chart key" viewBox="-7 -7 14 14">{_key(index, series)}</svg>'
                f"<span><bdi>{escape(series.name)}</bdi>"
                f"{f' <small>{escape(series.note)}</small>' if series.note else ''}</span></li>"
                for index, series in enumerate(self.series)
            ]
            legend = f'<ul class="legend">{"".join(items)}</ul>'
            if len(items) > _MOST_IN_THE_OPEN:
                summary = f"<summary>Legend ({len(items)})</summary>"
                legend = f"<details>{summary}{legend}</details>"
        # Every text that comes from data is escaped where it is put in.
        return Markup(f'<figure class="chart-box">{picture}{legend}</figure>')

    def file(self, style: str) -> str:
        """Return the chart as an SVG file of its own, its legend below it.

        Args:
            style: CSS, as in templates/charts.css.jinja.
        """
        width, height = self.size_px
        parts = [self._body()]
        listed = self.series if len(self.series) > 1 else ()
        for row, series in enumerate(listed):
            y = height + _LINE_PX * (row + 0.5)
            key = _key(row, series)
            name = escape(f"{_isolated(series.name, 40)} {series.note}".strip())
            parts.append(f'<g transform="translate({self._left + 6:g} {y:g})">{key}</g>')
            parts.append(
                f'<text class="axis" x="{self._left + 20:g}" y="{y:g}" dy=".35em">{name}</text>'
            )
        size = (width, height + _LINE_PX * len(listed) + 8)
        return svg_file(self.title, "".join(parts), size, style, self._look)

    @property
    def _left(self) -> float:
        """Return where the x axis begins: right of the y axis's title and its widest tick."""
        return 34 + _LETTER_PX * max((len(text) for _, text in self.y.ticks()), default=0)

    @property
    def _look(self) -> str:
        return "chart weighted" if any(s.weights is not None for s in self.series) else "chart"

    def _body(self) -> str:
        parts = self._grid()
        for index, series in enumerate(self.series):
            known = ~(np.isnan(series.x) | np.isnan(series.y))
            x, y = self._points_px(series)
            label = escape(f"{series.name} {series.note}".strip())
            parts.append(f"<g {_colour(index)}><title>{label}</title>")
            if series.line:
                parts.append(f'<polyline points="{_points(x[known], y[known])}"/>')
            radius = np.full(len(series.x), _RADIUS)
            if series.weights is not None:
                radius = 2.0 + 6.0 * np.sqrt(series.weights / max(int(series.weights.max()), 1))
            if series.dots:
                for row in np.flatnonzero(known):
                    faint = ""
                    if series.strengths is not None:
                        faint = f' style="fill-opacity:{series.strengths[row]:.2f}"'
                    parts.append(_mark(index, x[row], y[row], radius[row], faint))
            for ringed in series.rings:
                at = f'cx="{_px(x[ringed])}" cy="{_px(y[ringed])}" r="{_px(radius[ringed] + 3)}"'
                parts.append(f'<circle class="ring" {at}/>')
            parts.append("</g>")
        return "".join([*parts, *(self._labels() if self.labelled else ())])

    def _points_px(self, series: Series) -> tuple[Floats, Floats]:
        width, height = self.size_px
        x = self.x.pixels(series.x, self._left, width - _RIGHT)
        return x, self.y.pixels(series.y, height - _BOTTOM, _TOP)

    def _grid(self) -> list[str]:
        width, height = self.size_px
        left, right, top, bottom = self._left, width - _RIGHT, _TOP, height - _BOTTOM
        parts = []
        for value, text in self.x.ticks():
            x = _px(self.x.pixels(np.array(value), left, right))
            parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>')
            at = f'x="{x}" y="{bottom + 18}" text-anchor="middle"'
            parts.append(f"<text {at}>{escape(text)}</text>")
        for value, text in self.y.ticks():
            y = _px(self.y.pixels(np.array(value), bottom, top))
            parts.append(f'<line class="grid" x1="{left:g}" x2="{right}" y1="{y}" y2="{y}"/>')
            at = f'x="{left - 7:g}" y="{y}" dy=".35em" text-anchor="end"'
            parts.append(f"<text {at}>{escape(text)}</text>")
        middle = (top + bottom) / 2
        parts.append(
            f'<text class="axis" x="{(left + right) / 2:g}" y="{height - 7}" '
            f'text-anchor="middle">{escape(self.x.label)}</text>'
            f'<text class="axis" transform="translate(14 {middle}) rotate(-90)" '
            f'text-anchor="middle">{escape(self.y.label)}</text>'
        )
        if self.diagonal:
            both = np.array([max(self.x.range[0], self.y.range[0]), 1.0])
            points = _points(self.x.pixels(both, left, right), self.y.pixels(both, bottom, top))
            parts.append(f'<polyline class="diagonal" points="{points}"/>')
        return parts

    def _labels(self) -> list[str]:
        """Write names at the middle of their points, the largest series first, without overlaps."""
        width, height = self.size_px
        taken: list[tuple[float, float, float]] = []
        parts = []
        for series in sorted(self.series, key=lambda s: -len(s.x)):
            name = shortened(series.name, 18)
            half = _LETTER_PX * _width(name) / 2
            xs, ys = self._points_px(series)
            x = float(np.clip(np.nanmedian(xs), self._left + half, width - _RIGHT - half))
            y = float(np.clip(np.nanmedian(ys), _TOP + 8, height - _BOTTOM - 8))
            if any(
                x - half < end and start < x + half and abs(y - at_y) < 16
                for start, at_y, end in taken
            ):
                continue
            taken.append((x - half, y, x + half))
            at = f'x="{x:.1f}" y="{y:.1f}" dy=".35em" text-anchor="middle"'
            parts.append(f'<text class="label" {at}>{escape(name)}</text>')
        return parts


def matrix_file(names: Sequence[str], counts: NDArray[np.int64], style: str) -> str:
    """Draw counts as an SVG file: rows are true classes, shaded by their share of the row.

    Args:
        counts: shape (n_names, n_names).
    """
    cell, left, top = 24, 190, 190
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    parts = []
    for i, name in enumerate(names):
        text, middle = escape(_isolated(name, 22)), cell * (i + 0.5)
        at = f'x="{left - 8}" y="{top + middle:g}" dy=".35em" text-anchor="end"'
        parts.append(f"<text {at}>{text}</text>")
        at = f'transform="translate({left + middle:g} {top - 8}) rotate(-90)" dy=".35em"'
        parts.append(f"<text {at}>{text}</text>")
    side = cell * len(names)
    for i in range(len(names) + 1):
        along, across = f'x1="{left}" x2="{left + side}"', f'y1="{top}" y2="{top + side}"'
        x, y = left + cell * i, top + cell * i
        parts.append(f'<line class="grid" {along} y1="{y}" y2="{y}"/>')
        parts.append(f'<line class="grid" {across} x1="{x}" x2="{x}"/>')
    for row, column in zip(*np.nonzero(counts), strict=True):
        share, kind = float(shares[row, column]), "right" if row == column else "wrong"
        x, y = left + cell * int(column), top + cell * int(row)
        hint = escape(f"{names[row]} → {names[column]}: {counts[row, column]}")
        parts.append(
            f'<g class="{kind}"><title>{hint}</title><rect x="{x + 1}" y="{y + 1}" '
            f'width="{cell - 2}" height="{cell - 2}" rx="3" style="fill-opacity:'
            f'{0.1 + 0.9 * share:.2f}"/><text class="{"strong" if share > 0.6 else "axis"}" '
            f'x="{x + cell / 2:g}" y="{y + cell / 2:g}" dy=".35em" text-anchor="middle">'
            f"{counts[row, column]}</text></g>"
        )
    title = "Confusion matrix: rows are true classes, columns predictions"
    parts.append(f'<text class="axis" x="8" y="{top + cell * len(names) + 22}">{title}</text>')
    return svg_file(title, "".join(parts), (max(left + side, 420) + 8, top + side + 34), style)


def bars_file(
    title: str, names: Sequence[str], metrics: Sequence[tuple[str, Floats]], style: str
) -> str:
    """Draw bars of shares, 0 to 1, as an SVG file: one for each name and metric."""
    left, width, bar = 190, 300, 9
    row_px = bar * len(metrics) + 10
    parts = [f'<text class="axis" x="8" y="20">{escape(title)}</text>']
    for j, (metric, _) in enumerate(metrics):
        x = left + 110 * j
        parts.append(f'<g transform="translate({x} 38)">{_key(j, None)}</g>')
        parts.append(f'<text x="{x + 14}" y="38" dy=".35em">{escape(metric)}</text>')
    for i, name in enumerate(names):
        y = 56 + row_px * i
        at = f'x="{left - 8}" y="{y + row_px / 2 - 4:g}" dy=".35em" text-anchor="end"'
        parts.append(f"<text {at}>{escape(_isolated(name, 22))}</text>")
        for j, (metric, values) in enumerate(metrics):
            hint = escape(f"{name}: {metric} {values[i]:.3f}")
            parts.append(
                f'<rect class="bar-of {_colour_class(j)}" x="{left}" y="{y + bar * j}" '
                f'width="{width * float(values[i]):.1f}" height="{bar - 1}">'
                f"<title>{hint}</title></rect>"
            )
    return svg_file(title, "".join(parts), (left + width + 12, 60 + row_px * len(names)), style)


def svg_file(
    title: str, body: str, size_px: tuple[int, int], style: str, look: str = "chart"
) -> str:
    """Return an SVG file with its own style."""
    width, height = size_px
    return _CONTROL.sub(
        "\ufffd",
        f'<svg xmlns="http://www.w3.org/2000/svg" class="{look}" width="{width}" '
        f'height="{height}" viewBox="0 0 {width} {height}"><title>{escape(title)}</title>'
        f'<style>{style}</style><rect class="page" width="{width}" height="{height}"/>'
        f"{body}</svg>\n",
    )


def shortened(name: str, most: int) -> str:
    """Return at most `most` letters of a name, its middle left out: names often differ at the end.

    Letters of East Asian scripts count as two.
    """
    if _width(name) <= most:
        return name
    tail = ""
    for letter in reversed(name):
        if _width(letter + tail) > most // 3:
            break
        tail = letter + tail
    head = ""
    for letter in name:
        if _width(head + letter) > most - 1 - _width(tail):
            break
        head += letter
    return f"{head.rstrip()}…{tail.lstrip()}"


def _isolated(name: str, most: int) -> str:
    """Return a shortened name that lends its direction of writing to nothing beside it."""
    return f"\u2068{shortened(name, most)}\u2069"


def _width(text: str) -> int:
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.combining(letter) > 0 for letter in text)


def _colour_class(index: int) -> str:
    return f"s{index % N_COLOURS} m{index // N_COLOURS % len(SHAPES)}"


def _colour(index: int) -> str:
    """Return the look of a series: eight colours by eight shapes, then hues of its own."""
    hue = f' style="--c:hsl({index * 137.508 % 360:.0f} 60% 50%)"'
    return f'class="{_colour_class(index)}"{hue if index >= N_COLOURS * len(SHAPES) else ""}'


def _key(index: int, series: Series | None) -> str:
    """Draw what stands for a series in a legend, around the origin."""
    if series is not None and series.line and not series.dots:
        return f'<g {_colour(index)}><polyline points="-7,0 7,0"/></g>'
    return f"<g {_colour(index)}>{_mark(index, 0, 0, 4.2)}</g>"


def _mark(index: int, x: float, y: float, radius: float, attributes: str = "") -> str:
    """Draw a mark at a point, its shape by the series."""
    corners = SHAPES[index // N_COLOURS % len(SHAPES)]
    if not corners:
        at = f'cx="{_px(x)}" cy="{_px(y)}" r="{_px(radius)}"'
        return f'<circle class="dot" {at}{attributes}/>'
    points = " ".join(f"{_px(x + radius * dx)},{_px(y + radius * dy)}" for dx, dy in corners)
    return f'<polygon class="dot" points="{points}"{attributes}/>'


def _points(x: Floats, y: Floats) -> str:
    return " ".join(f"{_px(a)},{_px(b)}" for a, b in zip(x, y, strict=True))


def _px(value: Floats | float) -> str:
    return f"{float(value):.1f}".removesuffix(".0")
