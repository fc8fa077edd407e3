"""Charts as inline SVG, from data to markup. Colours are classes, so that the page's theme decides.

`Markup.format` escapes every text and coordinate. No `style` attribute is used, so the page's content security policy
can forbid them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from allo.files.evaluation import Accuracy
from allo.report import figures
from allo.report.axes import Scale, drawable, enclosing_ticks, extent, tick_labels, ticks, whole_ticks
from allo.report.run_view import Bin

if TYPE_CHECKING:
    from allo.weights.param_mask import MaskRow

CHARACTER = 6.6  # width of an 11-pixel character, in pixels; labels are cut to fit
BOLD = 7.4  # and of a bold one
# The order of data flow through a block; kinds with other names follow in the model's order.
READING_ORDER = (
    *("input_layernorm", "q_proj", "k_proj", "v_proj", "o_proj", "post_attention_layernorm"),
    *("gate_proj", "up_proj", "down_proj", "embed_tokens", "norm", "lm_head"),
)
LONGEST_KIND = 20  # characters of a tensor kind above its column
MAX_POINTS = 160  # a longer curve is drawn as means of consecutive steps


@dataclass(frozen=True)
class Series:
    """One line: its end label ("" for a chart's only line), its colour class, its (step, value) points."""

    label: str
    colour: int
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Whisker:
    """One row of an interval plot, accuracies or win rates; `colour` numbers a colour class, 0 is neutral."""

    label: str
    colour: int
    sampled: Accuracy | None
    greedy: Accuracy | None


def line_chart(title: str, series: Sequence[Series], *, is_share: bool = False) -> Markup:
    """Draw lines over training steps, with last values at their ends and gaps at values that are not finite.

    The axis of a share stays within 0 and 1.
    """
    width, height, top, bottom = 340, 172, 10, 140
    drawn = [_thinned(line.points) for line in series]
    steps = extent(step for points in drawn for step, _ in points)
    known = [step for points in drawn for step, _ in points if drawable(step)]
    marks = enclosing_ticks(*extent(value for points in drawn for _, value in points), most=4)
    marks = [mark for mark in marks if 0 <= mark <= 1 + 1e-9] if is_share else marks
    last = [next((at for at in reversed(points) if drawable(at[1])), None) for points in drawn]
    labels = [
        f"{line.label} {figures.significant(at[1])}".strip() if at else ""
        for line, at in zip(series, last, strict=True)
    ]
    left = 12 + CHARACTER * max(map(len, tick_labels(marks)))
    right = width - 8 - BOLD * max(map(len, labels), default=0)
    x, y = Scale(*steps, left, right), Scale(marks[0], marks[-1], bottom, top)
    whole = whole_ticks(min(known), max(known), most=5) if known else []
    parts = [
        _x_axis(x, whole, left=left, right=right, bottom=bottom),
        _y_axis(y, marks, left=left, right=right),
    ]
    ends: list[tuple[float, int, str]] = []
    for line, points, at, label in zip(series, drawn, last, labels, strict=True):
        parts += _line(points, x, y, line.colour)
        if at is not None:
            parts.append(_dot(x(at[0]), y(at[1]), radius=2.5, css=f"fill{line.colour}"))
            ends.append((y(at[1]), line.colour, label))
    for place, (colour, text) in _apart(ends, gap=13, lowest=bottom):
        parts.append(_text(right + 7, place + 4, text, css=f"end fill{colour}"))
    if not ends:
        parts.append(_text((left + right) / 2, (top + bottom) / 2, "no finite value", css="quiet middle"))
    parts.append(_text((left + right) / 2, height - 2, "step", css="quiet middle"))
    return _svg(width, height, f"{title}: {'; '.join(map(_told, series))}", parts)


def _told(line: Series) -> str:
    """Return a line in words, for readers who do not see it."""
    known = [point for point in line.points if drawable(point[0]) and drawable(point[1])]
    label = f"{line.label} " if line.label else ""
    if not known:
        return f"{label}no finite value"
    values = [value for _, value in known]
    first, last, low, high = map(figures.significant, (values[0], values[-1], min(values), max(values)))
    return (
        f"{label}{first} at step {figures.count(known[0][0])}, {last} at step {figures.count(known[-1][0])}, "
        f"lowest {low}, highest {high}"
    )


def interval_span(panels: Sequence[Sequence[Whisker]]) -> float:
    """Return one axis length (a share) that fits every panel's intervals, so that panels compare by eye."""
    return min(1.0, max((1.25 * (high - low) for low, high in map(_reach, panels)), default=1.0))


def interval_plot(title: str, whiskers: Sequence[Whisker], *, span: float, axis: str = "accuracy") -> Markup:
    """Draw a dot and whisker per model: sampled answers filled, greedy ones hollow, with their intervals."""
    width, row, top = 360, 44, 6
    longest = max((len(whisker.label) for whisker in whiskers), default=0)
    left, right = min(132.0, 14 + CHARACTER * longest), width - 14.0
    bottom = top + row * len(whiskers)
    low, high = _reach(whiskers)
    start = min(max(0.0, (low + high - span) / 2), 1.0 - span)
    x = Scale(start, start + span, left, right)
    marks = ticks(100 * x.low, 100 * x.high, most=5)
    parts = [_x_axis(x, marks, left=left, right=right, bottom=bottom, factor=100, grid=True)]
    first = whiskers[0].sampled or whiskers[0].greedy if whiskers else None
    if first is not None and drawable(first.accuracy):
        parts.append(_rule(x(first.accuracy), top, x(first.accuracy), bottom, css="reference"))
    for index, whisker in enumerate(whiskers):
        middle = top + row * (index + 0.5)
        label = _cut(whisker.label, int((left - 10) / CHARACTER))
        parts.append(_text(left - 10, middle + 4, label, css="label right", tooltip=whisker.label))
        for accuracy, place, hollow in (
            (whisker.sampled, middle - 6, False),
            (whisker.greedy, middle + 7, True),
        ):
            parts += _whisker(accuracy, x, place, whisker, hollow)
    parts.append(_text((left + right) / 2, bottom + 32, f"{axis}, %", css="quiet middle"))
    told = (
        _accuracy_told(whisker.label, kind, accuracy)
        for whisker in whiskers
        for kind, accuracy in (("sampled", whisker.sampled), ("greedy", whisker.greedy))
        if accuracy
    )
    return _svg(width, bottom + 36, f"{title}: {'; '.join(told)}", parts)


def _accuracy_told(label: str, kind: str, found: Accuracy) -> str:
    interval = figures.percent_interval(found.low, found.high)
    return f"{label}, {kind}: {figures.percent(found.accuracy)} {interval}"


def reliability_plot(title: str, bins: Sequence[Bin]) -> Markup:
    """Draw predicted probability against observed share; a dot's area is its share of tokens, the diagonal ideal."""
    width, height, left, top, bottom = 250, 222, 42, 8, 186
    x, y = Scale(0.0, 1.0, left, width - 14.0), Scale(0.0, 1.0, bottom, top)
    total = sum(each.num for each in bins)
    marks, right = ticks(0.0, 1.0, most=5), width - 14.0
    parts = [
        _x_axis(x, marks, left=left, right=right, bottom=bottom),
        _y_axis(y, marks, left=left, right=right),
    ]
    parts.append(_rule(x(0), y(0), x(1), y(1), css="reference"))
    parts += _line([(each.predicted, each.observed) for each in bins], x, y, 1)
    for each in bins:
        tooltip = (
            f"{figures.count(each.num)} tokens: predicted {figures.decimal(each.predicted, digits=2)}, "
            f"observed {figures.decimal(each.observed, digits=2)}"
        )
        radius = round(2 + 6 * (each.num / total) ** 0.5, 1)
        parts.append(_dot(x(each.predicted), y(each.observed), radius=radius, css="fill1", tooltip=tooltip))
    parts.append(_text((left + width) / 2, height - 4, "score", css="quiet middle"))
    told = (
        f"score {figures.decimal(each.predicted, digits=2)}: {figures.percent(each.observed)} of "
        f"{figures.count(each.num)} tokens"
        for each in bins
    )
    return _svg(width, height, f"{title}: {'; '.join(told)}", parts)


def heat_map(title: str, rows: "Sequence[MaskRow]", *, most: float) -> Markup:
    """Draw density by layer (rows) and tensor kind (columns); colour grows with its root, up to `most`."""
    layers, kinds = places(rows)
    cell, left = max(14, min(30, int(310 / max(1, len(kinds))))), 40
    tall = 16 if len(layers) <= 32 else 9
    # A name turned by 45 degrees extends as far to the right as it rises.
    runs = [0.72 * CHARACTER * min(LONGEST_KIND, len(kind)) for kind in kinds]
    head = 12 + max(runs, default=0.0)
    every = 1 if len(layers) <= 32 else 4
    parts = []
    for column, kind in enumerate(kinds):
        x = left + cell * (column + 0.5)
        parts.append(
            Markup(
                '<text class="label" transform="translate({},{}) rotate(-45)">{}<title>{}</title></text>'
            ).format(
                _px(x + 2),
                _px(head - 5),
                _cut(figures.printable(kind), LONGEST_KIND),
                figures.printable(kind),
            )
        )
    for index, layer in enumerate(layers):
        if layer == "-" or index % every == 0:
            label = "other" if layer == "-" else layer
            parts.append(_text(left - 6, head + tall * (index + 0.5) + 4, label, css="label right"))
    for row in rows:
        share = row.selected / row.total if row.total else 0.0
        x, y = left + cell * kinds.index(row.kind), head + tall * layers.index(row.layer)
        place = "outside the layers" if row.layer == "-" else f"layer {row.layer}"
        counts = f"{figures.count(row.selected)} of {figures.count(row.total)}"
        tooltip = f"{place}, {row.kind}: {figures.density(share)} ({counts})"
        parts.append(_cell(x, y, cell - 1, tall - 1, heat(share, most), tooltip))
    width = max((left + cell * (i + 0.5) + run + 8 for i, run in enumerate(runs)), default=0.0)
    width = max(width, left + cell * len(kinds))
    return _svg(round(width), round(head + tall * len(layers) + 2), title, parts)


def places(rows: "Sequence[MaskRow]") -> tuple[list[str], list[str]]:
    """Return a mask's layers and kinds of tensors in the order in which they are shown."""
    layers = sorted({row.layer for row in rows}, key=figures.as_number)
    return layers, sorted(dict.fromkeys(row.kind for row in rows), key=_kind_order)


def heat_legend(most: float) -> Markup:
    """Draw the colours of `heat_map` at round densities from 0 to `most`."""
    parts, marks = [], ticks(0.0, 100 * most, most=5) if most > 0 else [0.0]
    for step, (value, label) in enumerate(zip(marks, tick_labels(marks), strict=True)):
        x = 1 + 44 * step
        parts.append(_cell(x, 1, 43, 10, heat(value / 100, most), ""))
        parts.append(_text(x + 22, 25, f"{label}%", css="quiet middle"))
    return _svg(44 * len(marks) + 2, 30, "colour scale of density", parts)


def heat(share: float, most: float) -> float:
    """Return the opacity in [0, 1] of a density: its root, so that small densities still differ by eye."""
    return (min(1.0, share / most)) ** 0.5 if most > 0 else 0.0


def _line(points: Sequence[tuple[float, float]], x: Scale, y: Scale, colour: int) -> list[Markup]:
    runs: list[list[tuple[float, float]]] = [[]]
    for step, value in points:
        if drawable(value):
            runs[-1].append((step, value))
        elif runs[-1]:
            runs.append([])
    parts = []
    for run in runs:
        if len(run) == 1:
            parts.append(_dot(x(run[0][0]), y(run[0][1]), radius=1.5, css=f"fill{colour}"))
        elif run:
            path = " ".join(f"{_px(x(step))},{_px(y(value))}" for step, value in run)
            parts.append(Markup('<polyline class="line line{}" points="{}"/>').format(colour, path))
    return parts


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    known = [point for point in points if drawable(point[0])]
    size = -(-len(known) // MAX_POINTS) or 1
    chunks = [known[start : start + size] for start in range(0, len(known), size)]
    return [(chunk[-1][0], sum(value for _, value in chunk) / len(chunk)) for chunk in chunks]


def _apart(
    ends: list[tuple[float, int, str]], *, gap: float, lowest: float
) -> list[tuple[float, tuple[int, str]]]:
    """Return labels in their lines' order from top to bottom, at least `gap` apart and above `lowest`."""
    placed: list[tuple[float, tuple[int, str]]] = []
    for place, colour, text in sorted(ends):
        placed.append((max(place, placed[-1][0] + gap) if placed else place, (colour, text)))
    limit = lowest
    for index in reversed(range(len(placed))):
        placed[index] = (min(placed[index][0], limit), placed[index][1])
        limit = placed[index][0] - gap
    return placed


def _reach(whiskers: Sequence[Whisker]) -> tuple[float, float]:
    known = [accuracy for whisker in whiskers for accuracy in (whisker.sampled, whisker.greedy) if accuracy]
    return extent(value for accuracy in known for value in (accuracy.accuracy, accuracy.low, accuracy.high))


def _whisker(accuracy: Accuracy | None, x: Scale, y: float, whisker: Whisker, hollow: bool) -> list[Markup]:
    if accuracy is None or not all(map(drawable, (accuracy.accuracy, accuracy.low, accuracy.high))):
        return []
    tooltip = _accuracy_told(whisker.label, "greedy" if hollow else "sampled", accuracy)
    dot = f"hollow stroke{whisker.colour}" if hollow else f"fill{whisker.colour}"
    return [
        _rule(x(accuracy.low), y, x(accuracy.high), y, css=f"whisker stroke{whisker.colour}"),
        _dot(x(accuracy.accuracy), y, radius=4.2, css=dot, tooltip=tooltip),
    ]


def _x_axis(
    x: Scale,
    marks: list[float],
    *,
    left: float,
    right: float,
    bottom: float,
    factor: int = 1,
    grid: bool = False,
) -> Markup:
    """Draw the line below a chart with ticks at `marks`, which are the values times `factor`."""
    parts = [_rule(left, bottom, right, bottom, css="axis")]
    for value, label in zip(marks, tick_labels(marks), strict=True):
        place = x(value / factor)
        parts += [_rule(place, 0, place, bottom, css="grid")] if grid else []
        parts.append(_text(place, bottom + 14, label, css="quiet middle"))
    return Markup("").join(parts)


def _y_axis(y: Scale, marks: list[float], *, left: float, right: float) -> Markup:
    parts = []
    for value, label in zip(marks, tick_labels(marks), strict=True):
        parts.append(_rule(left, y(value), right, y(value), css="grid"))
        parts.append(_text(left - 6, y(value) + 4, label, css="quiet right"))
    return Markup("").join(parts)


def _kind_order(kind: str) -> int:
    return READING_ORDER.index(kind) if kind in READING_ORDER else len(READING_ORDER)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: max(1, most - 1)] + "…"


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _svg(width: float, height: float, title: str, parts: Sequence[Markup]) -> Markup:
    return Markup(
        '<svg viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img" aria-label="{2}">{3}</svg>'
    ).format(width, height, figures.printable(title), Markup("").join(parts))


def _rule(x1: float, y1: float, x2: float, y2: float, *, css: str) -> Markup:
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(
        css, _px(x1), _px(y1), _px(x2), _px(y2)
    )


def _dot(x: float, y: float, *, radius: float, css: str, tooltip: str = "") -> Markup:
    return Markup('<circle class="{}" cx="{}" cy="{}" r="{}">{}</circle>').format(
        css, _px(x), _px(y), radius, _title(tooltip)
    )


def _cell(x: float, y: float, width: float, height: float, opacity: float, tooltip: str) -> Markup:
    return Markup(
        '<g><rect class="ground" x="{0}" y="{1}" width="{2}" height="{3}"/>'
        '<rect class="heat" x="{0}" y="{1}" width="{2}" height="{3}" fill-opacity="{4}"/>{5}</g>'
    ).format(_px(x), _px(y), width, height, f"{opacity:.3f}", _title(tooltip))


def _text(x: float, y: float, text: str, *, css: str, tooltip: str = "") -> Markup:
    return Markup('<text class="{}" x="{}" y="{}">{}{}</text>').format(
        css, _px(x), _px(y), figures.printable(text), _title(tooltip)
    )


def _title(tooltip: str) -> Markup:
    return Markup("<title>{}</title>").format(figures.printable(tooltip)) if tooltip else Markup("")
