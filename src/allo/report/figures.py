"""Numbers and model text for readers; None is an en dash, everything else is exact to its unit."""

import math
import re

from allo.files import sizes

ABSENT = "–"
TIED = "\u00a0"  # a space without a line break
LONGEST_NAME = 72

# Characters that would reorder, end or hide the text around them; shown by name instead.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def printable(text: str, *, limit: int | None = None) -> str:
    """Return model text with control, direction and half-pair characters made visible, cut at `limit` characters."""
    rest = 0 if limit is None else max(0, len(text) - limit)
    kept = text.replace("\r\n", "\n")[: len(text) - rest]
    shown = _UNSAFE.sub(_visible, kept)
    return f"{shown}… ({count(rest)} more characters)" if rest else shown


def name(text: str) -> str:
    """Return the name of a model, set or run on one line, cut to LONGEST_NAME characters."""
    line = " ".join(printable(text).split())
    return line if len(line) <= LONGEST_NAME else line[: LONGEST_NAME - 1] + "…"


def _visible(match: re.Match[str]) -> str:
    code = ord(match.group())
    return chr(0x2400 + code) if code < 0x20 else f"[U+{code:04X}]"


def as_number(text: str) -> tuple[int, str]:
    """Return a key that sorts numbers by value, before all other texts."""
    return (int(text), text) if text.isdecimal() else (1 << 60, text)


def percent(share: float | None) -> str:
    """Return a share in [0, 1] as per cent."""
    return ABSENT if share is None else f"{_fixed(100 * share, 1)}%"


def density(share: float | None) -> str:
    """Return a share of weights as per cent with three significant digits, so that small densities stay readable."""
    return ABSENT if share is None else f"{100 * share:.3g}%"


def percent_interval(low: float | None, high: float | None) -> str:
    """Return a share's interval in per cent: [58.9, 63.4]."""
    return "" if low is None or high is None else interval(100 * low, 100 * high, digits=1)


def interval(low: float, high: float, *, digits: int) -> str:
    """Return an interval that never breaks over two lines: [58.9, 63.4]."""
    return f"[{_fixed(low, digits)},{TIED}{_fixed(high, digits)}]"


def points(difference: float | None) -> str:
    """Return the difference of two shares in percentage points, signed."""
    return ABSENT if difference is None else f"{100 * difference:+.1f}".replace("-", "−")


def decimal(value: float | None, *, digits: int) -> str:
    """Return a plain number with a fixed count of decimals."""
    return ABSENT if value is None else _fixed(value, digits)


def count(value: float | None) -> str:
    """Return a whole number with thousands separators."""
    return ABSENT if value is None else f"{value:,.0f}".replace("-", "−")


def seconds(value: float | None) -> str:
    """Return a duration in its natural unit: 12.3 s, 4 min 05 s, 2 h 03 min."""
    if value is None or not math.isfinite(value):
        return ABSENT
    if value < 59.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(value / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(num_bytes: float | None) -> str:
    """Return a size in decimal units (1 MB is 1,000,000 bytes) with three significant digits."""
    return ABSENT if num_bytes is None else sizes.size(num_bytes)


def significant(value: float) -> str:
    """Return a number of any magnitude with three significant digits, for chart labels."""
    text = f"{value:.3g}"
    return (f"{value:,.0f}" if "e+0" in text and abs(value) < 1e6 else text).replace("-", "−")


def _fixed(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", "−")
