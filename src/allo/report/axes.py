"""Scales and ticks for charts, finite for any data: empty, constant, huge or not a number."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

LARGEST = 1e100  # beyond this, spans overflow and an axis is useless


def drawable(value: float | None) -> bool:
    """Return whether a value has a place on an axis."""
    return value is not None and math.isfinite(value) and abs(value) < LARGEST


def extent(values: Iterable[float]) -> tuple[float, float]:
    """Return the interval of all drawable values, never empty: [0, 1] for none, widened for a constant."""
    kept = [value for value in values if drawable(value)]
    if not kept:
        return 0.0, 1.0
    low, high = min(kept), max(kept)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
        pad = abs(low) / 10 or 0.5
        return low - pad, high + pad
    return low, high


def ticks(low: float, high: float, *, most: int) -> list[float]:
    """Return at most `most` + 1 round numbers (1, 2 or 5 times a power of ten) within [low, high]."""
    step = _step(low, high, most)
    return _multiples(step, math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6))


def whole_ticks(low: float, high: float, *, most: int) -> list[float]:
    """Return at most `most` + 1 round whole numbers within [low, high], which are whole: steps of training."""
    step = max(1.0, _step(low, high, most)) if high > low else max(1.0, abs(low))
    return _multiples(step, math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6))


def enclosing_ticks(low: float, high: float, *, most: int) -> list[float]:
    """Return round numbers of which the first is at most `low` and the last at least `high`."""
    step = _step(low, high, most)
    return _multiples(step, math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6))


def _step(low: float, high: float, most: int) -> float:
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    return next(multiple * power for multiple in (1, 2, 5, 10, 20) if multiple * power >= raw * (1 - 1e-9))


def _multiples(step: float, first: int, last: int) -> list[float]:
    return [index * step for index in range(first, last + 1)]


def tick_labels(values: list[float]) -> list[str]:
    """Return the ticks' texts, each with the digits that tell neighbours apart."""
    largest = max((abs(value) for value in values), default=0.0)
    step = min((b - a for a, b in pairwise(values)), default=largest or 1.0)
    place = math.floor(math.log10(step) + 1e-6)  # of the step's digit
    if place < -4 or largest >= 1e6:
        digits = max(1, math.floor(math.log10(largest or 1.0) + 1e-6) - place + 1)
        return [f"{value:.{digits}g}".replace("-", "−") for value in values]
    return [f"{value + 0.0:,.{max(0, -place)}f}".replace("-", "−") for value in values]


@dataclass(frozen=True)
class Scale:
    """A linear map from [low, high] to the pixels [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)
