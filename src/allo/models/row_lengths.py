"""The longest row that a model reads the same alone and in a batch."""

from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PreTrainedModel

from allo.errors import UserError
from allo.models.model_checks import num_positions, rope_length


def num_tokens(row: Mapping[str, Any]) -> int:
    """Return the tokens of a row's prompt and its longest completion."""
    sides = ("chosen_ids", "rejected_ids", "completion_ids")
    return len(row["prompt_ids"]) + max(len(row[side]) for side in sides if side in row)


def check_rows_fit(
    model: PreTrainedModel, rows: Iterable[Mapping[str, Any]], *, name: str, max_length: int | None = None
) -> None:
    """Refuse rows of token ids that are longer than the model's `num_positions`."""
    longest = max(map(num_tokens, rows), default=0)
    limit = num_positions(model.config)
    if limit is None or longest <= limit:
        return
    reason = "for prompt and completion together"
    if limit == rope_length(model.config):
        reason = "beyond which its rotary angles depend on how many tokens follow"
    now = "" if max_length is None else f" (it is {max_length})"
    raise UserError(
        f"{name}: the longest row has {longest} tokens, but {type(model).__name__} has {limit} positions {reason}: set "
        f"max_length to {limit} or less{now}."
    )
