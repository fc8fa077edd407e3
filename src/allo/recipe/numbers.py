"""The kinds of numbers, names and paths in a recipe's fields, with realistic bounds.

An upper bound is far above common values, but below those that would fill memory or overflow during a run.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

MOST_SEED = 2**32 - 1
"""The largest seed that numpy, and therefore transformers, accepts."""


def _without_sign(number: float) -> float:
    """Return 0.0 for -0.0: recipes that do the same should be equal."""
    return number + 0.0


def _is_path(value: Any) -> Any:
    if isinstance(value, str) and (not value.strip() or "\0" in value):
        raise ValueError("give a path; it may not be empty, nor hold the character \\0")
    return value


# Strict, since YAML's `yes` would pass as 1; integers still pass as numbers.
Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Density = Annotated[Number, Field(gt=0, le=1)]
Share = Annotated[Number, Field(gt=0, le=1)]
# The range of 32-bit floats, in which they are used; whether such a rate works, training finds out and reports.
Positive = Annotated[Number, Field(gt=0, le=3e38)]
NotNegative = Annotated[Number, Field(ge=0, le=3e38), AfterValidator(_without_sign)]
# Rows, pairs, prompts: more than one file can hold.
Count = Annotated[Whole, Field(ge=1, le=10**9)]
CountOrZero = Annotated[Whole, Field(ge=0, le=10**9)]
Seed = Annotated[Whole, Field(ge=0, le=MOST_SEED)]
# Tokens of one text or batch: contexts reach some millions.
Tokens = Annotated[Whole, Field(ge=1, le=2**24)]
# Rows in memory together.
BatchSize = Annotated[Whole, Field(ge=1, le=2**16)]
# Completions of one prompt: studies of repeated sampling take up to 10,000.
Generations = Annotated[Whole, Field(ge=1, le=10_000)]
GenerationsOrZero = Annotated[Whole, Field(ge=0, le=10_000)]
# Rounds, trials, attempts at a request: each takes seconds to hours.
Times = Annotated[Whole, Field(ge=1, le=1000)]
TimesOrZero = Annotated[Whole, Field(ge=0, le=1000)]
# Open connections: a process may have some thousands of open files.
Connections = Annotated[Whole, Field(ge=1, le=4096)]
# Seconds: up to a week.
Seconds = Annotated[Number, Field(gt=0, le=604_800)]
SecondsOrZero = Annotated[Number, Field(ge=0, le=604_800), AfterValidator(_without_sign)]
# Part of a file name, which has at most 255 bytes.
SetName = Annotated[str, Field(pattern=r"^[\w.-]+$", max_length=60)]
# A word, an id or a path.
Name = Annotated[str, Field(pattern=r"\S", max_length=4096)]
Place = Annotated[Path, BeforeValidator(_is_path)]
