"""The kinds of numbers and names that a recipe's fields hold."""

from typing import Annotated

from pydantic import Field

# Strict, since YAML's `yes` would pass as 1; an integer is still a number.
Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Density = Annotated[Number, Field(gt=0, le=1)]
Share = Annotated[Number, Field(gt=0, le=1)]
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Count = Annotated[Whole, Field(ge=1)]
CountOrZero = Annotated[Whole, Field(ge=0)]
# It becomes part of a file's name.
SetName = Annotated[str, Field(pattern=r"^[\w.-]+$")]
