"""Records to rows of token ids, by the one tokenization function; what does not fit is counted."""

from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from allo.errors import UserError
from allo.hf.tokenization import cut_left, tokenize

# `prompt`, `completion`, and optionally `finished`, `completion_ids` (taken instead of the text's own) and `token_weights`
# (one a completion token).
CompletionRow = Mapping[str, Any]
# `prompt`, `chosen`, `rejected`, and optionally `chosen_finished`, `rejected_finished`, `chosen_token_ids` and
# `rejected_token_ids` (taken instead of the texts' own).
PairRow = Mapping[str, Any]


def completion_rows(
    tokenizer: PreTrainedTokenizerBase, rows: Iterable[CompletionRow], *, max_length: int
) -> tuple[list[dict[str, Any]], int]:
    """Rows with `prompt_ids`, `completion_ids`, `token_weights`, and how many were dropped.

    Dropped are completions longer than `max_length` tokens and those of which no token has a weight.
    Raises `UserError` where `token_weights` has another length than the completion, or nothing is left.
    """
    kept, dropped = [], 0
    for row in rows:
        tokens = tokenize(
            tokenizer,
            row["prompt"],
            row["completion"],
            finished=row.get("finished", True),
            completion_ids=row.get("completion_ids"),
            max_length=max_length,
        )
        weights = row.get("token_weights")
        if tokens is None or (weights is not None and not any(weights)):
            dropped += 1
            continue
        if weights is None:
            weights = [1.0] * len(tokens.completion_ids)
        if len(weights) != len(tokens.completion_ids):
            raise UserError(
                f"token_weights has {len(weights)} entries for {len(tokens.completion_ids)} completion tokens; "
                "give one a token (EOS included where the completion finished), made with this tokenizer."
            )
        kept.append(
            {
                "prompt_ids": tokens.prompt_ids,
                "completion_ids": tokens.completion_ids,
                "token_weights": list(weights),
            }
        )
    return _some(kept, dropped, max_length), dropped


def pair_rows(
    tokenizer: PreTrainedTokenizerBase, rows: Iterable[PairRow], *, max_length: int
) -> tuple[list[dict[str, Any]], int]:
    """Rows with `prompt_ids`, `chosen_ids`, `rejected_ids`, and how many did not fit.

    Chosen and rejected follow the same prompt, cut so that the longer of the two fits.
    """
    kept, dropped = [], 0
    for row in rows:
        sides = [
            tokenize(
                tokenizer,
                row["prompt"],
                row[side],
                finished=row.get(f"{side}_finished", True),
                completion_ids=row.get(f"{side}_token_ids"),
                max_length=max_length,
            )
            for side in ("chosen", "rejected")
        ]
        chosen, rejected = sides
        if chosen is None or rejected is None:
            dropped += 1
            continue
        room = max_length - max(len(chosen.completion_ids), len(rejected.completion_ids))
        kept.append(
            {
                "prompt_ids": cut_left(tokenizer, chosen.prompt_ids, room),
                "chosen_ids": chosen.completion_ids,
                "rejected_ids": rejected.completion_ids,
            }
        )
    return _some(kept, dropped, max_length), dropped


def _some(kept: list[dict[str, Any]], dropped: int, max_length: int) -> list[dict[str, Any]]:
    if not kept and not dropped:
        raise UserError("there is no row to train on: the data set is empty.")
    if not kept:
        raise UserError(
            f"no row is left to train on: {dropped} were dropped because their completion does not fit into "
            f"max_length {max_length} or has no weighted token. Raise max_length, or the score threshold."
        )
    return kept
