"""Line plots as a self-contained SVG file, with colours for light and dark pages."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from markupsafe import Markup

from allo.report.axes import Scale, extent, tick_labels, ticks

WIDTH, HEIGHT = 360, 240  # of one panel, pixels
LEFT, RIGHT, TOP, BOTTOM = 52, 340, 46, 196  # of the plot within it
MARGIN = 0.04  # of a logarithmic axis, beyond its first and last point
NEAREST = 28  # pixels between the marks of a logarithmic axis
LEGEND, ENTRY = 24, 150  # height of a legend row, width of an entry
# Blue, vermilion, green, purple, ochre, grey, crimson, violet: distinct for colour-blind readers, the later by dashes.
LIGHT = ("#0067a8", "#c04c00", "#00775a", "#8a3f97", "#7a6200", "#59626c", "#b3003c", "#5a4bd1")
DARK = ("#5cb3ec", "#f0904e", "#4fc3a1", "#cf8fda", "#cdb24a", "#a0a8b1", "#ff7a9c", "#a79bff")
DASHES = ("", "", "", "6 3", "2 3", "8 3 2 3", "1 3", "12 4")


def _colours(colours: Sequence[str]) -> str:
    return " ".join(
        f".line{i} {{ stroke: {colour}; }} .dot{i} {{ fill: {colour}; }}" for i, colour in enumerate(colours)
    )


STYLE = f"""
text {{ font: 11px sans-serif; fill: #16191d; }} .quiet {{ fill: #59626c; }} .title {{ font-weight: bold; }}
.middle {{ text-anchor: middle; }} .right {{ text-anchor: end; }}
.grid {{ stroke: #dfe3e7; }} .axis {{ stroke: #59626c; }} polyline {{ fill: none; stroke-width: 2; }}
.interval {{ stroke-width: 1.2; opacity: 0.7; }}
{_colours(LIGHT)}
@media (prefers-color-scheme: dark) {{
text {{ fill: #e8eaed; }} .quiet {{ fill: #a0a8b1; }} .grid {{ stroke: #32373d; }} .axis {{ stroke: #a0a8b1; }}
{_colours(DARK)} }}
"""


class Mark(NamedTuple):
    """A point of a line and its interval, if any."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Panel:
    """One pair of axes. `lines`: label -> points in order of x; at most as many as there are colours.

    A linear x axis begins at 0, a logarithmic one slightly before the first point. `y_from`: a value that the y axis
    includes.
    """

    title: str
    x_label: str
    lines: Mapping[str, Sequence[Mark]]
    x_scale: Literal["linear", "log"] = "linear"
    y_from: float | None = 0.0


def figure(panels: Sequence[Panel]) -> str:
    """Draw the panels side by side, above one legend for all of them."""
    labels = list(dict.fromkeys(label for panel in panels for label in panel.lines))
    if len(labels) > len(LIGHT):
        raise ValueError(f"{len(labels)} lines in one plot, and {len(LIGHT)} colours: draw fewer")
    width = WIDTH * len(panels)
    in_a_row = max(1, (width - LEFT) // ENTRY)
    parts = [_panel(panel, WIDTH * place, labels) for place, panel in enumerate(panels)]
    for place, label in enumerate(labels):
        row, column = divmod(place, in_a_row)
        x, y = LEFT + ENTRY * column, HEIGHT + 8 + LEGEND * row
        parts.append(Markup('<circle class="dot{}" cx="{}" cy="{}" r="4"/>').format(place, x, y))
        parts.append(_text(x + 9, y + 4, label, css=""))
    height = HEIGHT + LEGEND * -(-len(labels) // in_a_row)
    return str(
        Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}" '
            'role="img" aria-label="{2}"><style>{3}</style>{4}</svg>\n'
        ).format(
            width, height, "; ".join(panel.title for panel in panels), Markup(STYLE), Markup("").join(parts)
        )
    )


def _panel(panel: Panel, left: float, labels: Sequence[str]) -> Markup:
    points = [point for line in panel.lines.values() for point in line]
    on_x = [_place(panel, point.x) for point in points]
    first, last = extent(on_x if panel.x_scale == "log" else [0.0, *on_x])
    margin = MARGIN * (last - first) if panel.x_scale == "log" else 0.0
    x = Scale(first - margin, last + margin, LEFT, RIGHT)
    reach = [value for point in points for value in (point.y, point.low, point.high) if value is not None]
    y = Scale(*extent(reach if panel.y_from is None else [panel.y_from, *reach]), BOTTOM, TOP)
    parts = [_text(LEFT, 18, panel.title, css="title")]
    parts += [_x_mark(x(place), label) for place, label in _x_ticks(panel, x)]
    places = ticks(y.low, y.high, most=5)
    parts += [_y_mark(y(place), label) for place, label in zip(places, tick_labels(places), strict=True)]
    parts.append(
        Markup('<line class="axis" x1="{0}" y1="{2}" x2="{1}" y2="{2}"/>').format(LEFT, RIGHT, BOTTOM)
    )
    parts.append(_text((LEFT + RIGHT) / 2, HEIGHT - 10, panel.x_label, css="quiet middle"))
    for label, line in panel.lines.items():
        parts += _line(panel, line, x, y, colour=labels.index(label))
    return Markup('<g transform="translate({},0)">{}</g>').format(left, Markup("").join(parts))


def _line(panel: Panel, line: Sequence[Mark], x: Scale, y: Scale, *, colour: int) -> list[Markup]:
    at = [x(_place(panel, point.x)) for point in line]
    path = " ".join(f"{place:.1f},{y(point.y):.1f}" for place, point in zip(at, line, strict=True))
    dashes = Markup(' stroke-dasharray="{}"').format(DASHES[colour]) if DASHES[colour] else ""
    parts = [Markup('<polyline class="line{}" points="{}"{}/>').format(colour, path, dashes)]
    for place, point in zip(at, line, strict=True):
        if point.low is not None and point.high is not None:
            parts.append(
                Markup(
                    '<line class="interval line{0}" x1="{1:.1f}" y1="{2:.1f}" x2="{1:.1f}" y2="{3:.1f}"/>'
                ).format(colour, place, y(point.low), y(point.high))
            )
        parts.append(
            Markup('<circle class="dot{}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(colour, place, y(point.y))
        )
    return parts


def _place(panel: Panel, value: float) -> float:
    return math.log10(value) if panel.x_scale == "log" else value


def _x_ticks(panel: Panel, x: Scale) -> list[tuple[float, str]]:
    """Return the x axis's marks, in its own scale, and their texts; a logarithmic axis marks the points' values."""
    if panel.x_scale == "linear":
        places = ticks(x.low, x.high, most=5)
        return list(zip(places, tick_labels(places), strict=True))
    values = sorted({point.x for line in panel.lines.values() for point in line})
    marks: list[tuple[float, str]] = []
    for value in values:
        if not marks or x(math.log10(value)) - x(marks[-1][0]) >= NEAREST:
            marks.append((math.log10(value), f"{value:.3g}"))
    return marks


def _x_mark(place: float, label: str) -> Markup:
    return _text(place, BOTTOM + 15, label, css="quiet middle")


def _y_mark(place: float, label: str) -> Markup:
    rule = Markup('<line class="grid" x1="{0}" y1="{2:.1f}" x2="{1}" y2="{2:.1f}"/>').format(
        LEFT, RIGHT, place
    )
    return rule + _text(LEFT - 6, place + 4, label, css="quiet right")


def _text(x: float, y: float, text: str, *, css: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(css, x, y, text)
