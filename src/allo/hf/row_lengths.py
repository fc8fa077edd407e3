"""The longest row that a model reads in a batch as it would read it alone."""

from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from allo.errors import UserError


def rope_length(config: PretrainedConfig) -> int | None:
    """Return the positions beyond which rotary angles depend on the longest row of a batch; None: they never do.

    "longrope" takes other frequencies for every row once one of them is longer, and "dynamic" those of the longest, which
    it even keeps for later batches.
    """
    config = config.get_text_config()
    ropes = getattr(config, "rope_parameters", None) or {}
    lengths = []
    for rope in [ropes, *(each for each in ropes.values() if isinstance(each, Mapping))]:
        kind = str(rope.get("rope_type", ""))
        if kind == "longrope" or "dynamic" in kind:
            own = (
                rope.get("original_max_position_embeddings"),
                getattr(config, "max_position_embeddings", None),
            )
            lengths += [length for length in own if isinstance(length, int)]
    return min(lengths, default=None)


def num_tokens(row: Mapping[str, Any]) -> int:
    """Return the tokens of a row's prompt and its longest completion."""
    sides = ("chosen_ids", "rejected_ids", "completion_ids")
    return len(row["prompt_ids"]) + max(len(row[side]) for side in sides if side in row)


def check_rows_fit(
    model: PreTrainedModel, rows: Iterable[Mapping[str, Any]], *, name: str, max_length: int | None = None
) -> None:
    """Refuse rows of token ids that are longer than the model's positions, or than `rope_length`."""
    longest = max(map(num_tokens, rows), default=0)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for limit, reason in (
        (rope_length(model.config), "beyond which its rotary angles depend on what else is in the batch"),
        (positions, "for prompt and completion together"),
    ):
        if isinstance(limit, int) and longest > limit:
            now = "" if max_length is None else f" (it is {max_length})"
            raise UserError(
                f"{name}: the longest row has {longest} tokens, but {type(model).__name__} has {limit} positions "
                f"{reason}: set max_length to {limit} or less{now}."
            )
