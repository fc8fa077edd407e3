"""The losses that a recipe's `improve` may name."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, StringConstraints


def _number_or_flag(value: Any) -> Any:
    if not isinstance(value, bool | int | float) or not math.isfinite(value):
        raise ValueError("a loss's setting is a number, true or false")
    return value


LossName = Annotated[
    str, StringConstraints(pattern=r"^(dpo|r_dpo|ipo|bco|simpo|sft|rft|.+\.py:[A-Za-z_]\w*)$")
]
LossSettings = dict[str, Annotated[bool | float, BeforeValidator(_number_or_flag)]]
Filter = Literal["lowest", "highest", "random"]
# These learn single answers: they know no pair.
SUPERVISED = ("sft", "rft")


def check_supervised(loss: str, settings: Mapping[str, float | bool], *, keep: float, anchor: float) -> None:
    """Refuse what a loss of single answers would ignore: a `ValueError` that says what to do."""
    if loss not in SUPERVISED:
        return
    if settings:
        raise ValueError(f"loss {loss} has no settings: remove loss_settings.{min(settings)}")
    if keep < 1:
        raise ValueError(f"loss {loss} has no rejected answer to filter: set keep to 1.0")
    if anchor:
        raise ValueError(f"loss {loss} is a likelihood already: set anchor to 0")
