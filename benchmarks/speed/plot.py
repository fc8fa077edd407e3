"""Line plots as one SVG file that stands alone: it brings its colours, for light and dark pages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from allo.report.axes import Scale, extent, tick_labels, ticks

WIDTH, HEIGHT = 360, 240  # of one panel, pixels
LEFT, RIGHT, TOP, BOTTOM = 52, 340, 46, 196  # of the plot in it
LEGEND = 24
STYLE = """
text { font: 11px sans-serif; fill: #16191d; } .quiet { fill: #59626c; } .title { font-weight: bold; }
.middle { text-anchor: middle; } .right { text-anchor: end; }
.grid { stroke: #dfe3e7; } .axis { stroke: #59626c; } polyline { fill: none; stroke-width: 2; }
.line0 { stroke: #0067a8; } .line1 { stroke: #c04c00; } .dot0 { fill: #0067a8; } .dot1 { fill: #c04c00; }
@media (prefers-color-scheme: dark) {
text { fill: #e8eaed; } .quiet { fill: #a0a8b1; } .grid { stroke: #32373d; } .axis { stroke: #a0a8b1; }
.line0 { stroke: #5cb3ec; } .line1 { stroke: #f0904e; } .dot0 { fill: #5cb3ec; } .dot1 { fill: #f0904e; } }
"""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """One pair of axes, both from 0. `lines`: label -> (x, y) points, in the order of x; at most two."""

    title: str
    x_label: str
    lines: Mapping[str, Points]


def figure(panels: Sequence[Panel]) -> str:
    """The panels side by side, above one legend of the first panel's lines."""
    parts = [_panel(panel, WIDTH * place) for place, panel in enumerate(panels)]
    for place, label in enumerate(panels[0].lines):
        x = LEFT + 150 * place
        parts.append(Markup('<circle class="dot{}" cx="{}" cy="{}" r="4"/>').format(place, x, HEIGHT + 8))
        parts.append(_text(x + 9, HEIGHT + 12, label, css=""))
    return str(
        Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}" '
            'role="img" aria-label="{2}"><style>{3}</style>{4}</svg>\n'
        ).format(
            WIDTH * len(panels),
            HEIGHT + LEGEND,
            "; ".join(panel.title for panel in panels),
            Markup(STYLE),
            Markup("").join(parts),
        )
    )


def _panel(panel: Panel, left: float) -> Markup:
    points = [point for line in panel.lines.values() for point in line]
    x = Scale(*extent([0.0, *(point[0] for point in points)]), LEFT, RIGHT)
    y = Scale(*extent([0.0, *(point[1] for point in points)]), BOTTOM, TOP)
    parts = [_text(LEFT, 18, panel.title, css="title")]
    for scale, mark in ((x, _x_mark), (y, _y_mark)):
        places = ticks(scale.low, scale.high, most=5)
        parts += [mark(scale(place), label) for place, label in zip(places, tick_labels(places), strict=True)]
    parts.append(
        Markup('<line class="axis" x1="{0}" y1="{2}" x2="{1}" y2="{2}"/>').format(LEFT, RIGHT, BOTTOM)
    )
    parts.append(_text((LEFT + RIGHT) / 2, HEIGHT - 10, panel.x_label, css="quiet middle"))
    for place, line in enumerate(panel.lines.values()):
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in line)
        parts.append(Markup('<polyline class="line{}" points="{}"/>').format(place, path))
        parts += [
            Markup('<circle class="dot{}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(place, x(a), y(b))
            for a, b in line
        ]
    return Markup('<g transform="translate({},0)">{}</g>').format(left, Markup("").join(parts))


def _x_mark(place: float, label: str) -> Markup:
    return _text(place, BOTTOM + 15, label, css="quiet middle")


def _y_mark(place: float, label: str) -> Markup:
    rule = Markup('<line class="grid" x1="{0}" y1="{2:.1f}" x2="{1}" y2="{2:.1f}"/>').format(
        LEFT, RIGHT, place
    )
    return rule + _text(LEFT - 6, place + 4, label, css="quiet right")


def _text(x: float, y: float, text: str, *, css: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(css, x, y, text)
