"""Charts of the report: drawn numbers are finite, and ticks are round."""

import math
import re

import pytest

from allo.files.evaluation import Accuracy
from allo.report import axes, charts, figures
from allo.weights.param_mask import MaskRow
from report_setup import Page

NUMBER = re.compile(
    r'(?:x|y|x1|x2|y1|y2|cx|cy|r|width|height|points|transform|viewBox|fill-opacity)="([^"]*)"'
)
CURVES = {
    "empty": [],
    "one": [0.5],
    "constant": [2.0] * 7,
    "zero": [0.0] * 3,
    "nan": [math.nan] * 4,
    "gap": [1.0, math.nan, math.inf, 2.0, -math.inf, 3.0],
    "huge": [-1e308, 1e308, 1.0],
    "tiny": [1e-300, 2e-300],
    "close": [1.0, 1.0 + 1e-15],
    "long": [math.sin(i / 30) for i in range(5000)],
}


@pytest.mark.parametrize("values", CURVES.values(), ids=CURVES.keys())
def test_charts_have_finite_coordinates(values: list[float]) -> None:
    chart = charts.line_chart(
        "loss", [charts.Series("a", 1, list(enumerate(values))), charts.Series("b", 2, [])]
    )
    assert_finite(chart)


@pytest.mark.parametrize("share", [0.0, 1.0, 0.5, math.nan])
def test_interval_plot_has_finite_coordinates(share: float) -> None:
    rows = [
        charts.Whisker("a" * 90, 0, Accuracy(share, share, share, 0), None),
        charts.Whisker("b", 1, None, None),
    ]
    assert_finite(charts.interval_plot("set", rows, span=charts.interval_span([rows, []])))


@pytest.mark.parametrize(
    "rows", [[], [MaskRow("-", "norm", 0, 0)], [MaskRow(str(i), "k" * 50, i, 99) for i in range(99)]]
)
def test_heat_map_has_finite_coordinates(rows: list[MaskRow]) -> None:
    for most in (0.0, 1.0):
        assert_finite(charts.heat_map("map", rows, most=most) + charts.heat_legend(most))


def assert_finite(svg: str) -> None:
    Page(svg)
    numbers = [
        part for match in NUMBER.findall(svg) for part in re.split(r"[ ,()]+|translate|rotate", match) if part
    ]
    assert numbers
    assert all(math.isfinite(float(number)) for number in numbers)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-3.2, 7.9), (0.4321, 0.4329), (1e-9, 3e-9), (-1e90, 1e90)]
)
def test_ticks_are_round_few_and_inside(low: float, high: float) -> None:
    marks = axes.ticks(low, high, most=5)
    assert 2 <= len(marks) <= 6
    slack = 1e-6 * (high - low)
    assert all(low - slack <= mark <= high + slack for mark in marks)
    assert len(set(axes.tick_labels(marks))) == len(marks)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (figures.seconds(0.04), "0.0 s"),
        (figures.seconds(59.96), "1 min 00 s"),
        (figures.seconds(3599.6), "1 h 00 min"),
        (figures.seconds(7380), "2 h 03 min"),
        (figures.size(999), "999 bytes"),
        (figures.size(655_360), "655 kB"),
        (figures.size(999_999), "1.00 MB"),
        (figures.size(9_340_000_000), "9.34 GB"),
        (figures.percent(0.6125), "61.3%"),
        (figures.percent(None), "–"),
        (figures.density(0.00012345), "0.0123%"),
        (figures.points(-0.0312), "−3.1"),
        (figures.significant(-0.8231), "−0.823"),
        (figures.significant(12345.6), "12,346"),
        (figures.count(1234567), "1,234,567"),
        (figures.printable("a\x00b\u202ec\ud800", limit=None), "a␀b[U+202E]c[U+D800]"),
        (figures.printable("x" * 30, limit=10), "x" * 10 + "… (20 more characters)"),
    ],
)
def test_figures(shown: str, expected: str) -> None:
    assert shown == expected
