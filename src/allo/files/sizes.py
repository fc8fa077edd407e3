"""A size in words."""

UNITS = ("bytes", "kB", "MB", "GB", "TB")


def size(num_bytes: float) -> str:
    """Return a size in decimal units (1 MB is 1,000,000 bytes) with three significant digits."""
    value, unit = float(num_bytes), 0
    while value >= 999.5 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    digits = 0 if unit == 0 or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {UNITS[unit]}"
