"""Rows of token ids from records, all by one tokenization function; rows that do not fit are counted."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from allo.errors import UserError
from allo.models.tokenization import Opened, Tokenized, cut_left, opened, tokenize

# `prompt`, `completion`, and optionally `finished`, `token_weights` (one per completion token), `completion_ids`
# (replace the text's own), `message` (replaces the text), `template` and `label` (whether it is good).
CompletionRow = Mapping[str, Any]
# `prompt`, `chosen`, `rejected`, and optionally `template` and, for each side, `SIDE_finished`, `SIDE_token_ids`
# (replace the text's own) and `SIDE_message` (replaces the text).
PairRow = Mapping[str, Any]


@dataclass(frozen=True)
class Counts:
    """The rows that were dropped, by reason, and those whose prompt lost its beginning (`cut`).

    `long`: the completion leaves no room for a prompt token. `empty`: it has no token. `unweighted`: none of its
    tokens has a weight. `equal`: both sides of a pair are the same tokens.
    """

    long: int = 0
    empty: int = 0
    unweighted: int = 0
    equal: int = 0
    cut: int = 0

    @property
    def dropped(self) -> int:
        return self.long + self.empty + self.unweighted + self.equal

    def reasons(self, max_length: int) -> str:
        """Return the reasons for dropped rows, in words; nothing if none was dropped."""
        why = {
            f"do not fit into max_length {max_length}": self.long,
            "have a completion without tokens": self.empty,
            "have no weighted token": self.unweighted,
            "are pairs whose sides are the same tokens": self.equal,
        }
        return ", ".join(f"{number} {reason}" for reason, number in why.items() if number)

    @property
    def advice(self) -> str:
        """Return advice on dropped rows, by their reasons."""
        if self.long:
            return "Raise max_length, or shorten the completions."
        return "Raise the score threshold." if self.unweighted else "Change the rows."

    def words(self, max_length: int) -> str:
        """Return a description of dropped and cut rows, in words; nothing if all are whole."""
        parts = []
        if self.dropped:
            rows = "row is" if self.dropped == 1 else "rows are"
            parts.append(f"{self.dropped} {rows} dropped ({self.reasons(max_length)})")
        if self.cut:
            parts.append(f"{self.cut} prompts lose their beginning to fit into max_length {max_length}")
        return "; ".join(parts)


def counted_completions(
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[CompletionRow],
    *,
    max_length: int,
    num_ids: int | None = None,
) -> tuple[list[dict[str, Any]], Counts]:
    """Return rows with `prompt_ids`, `completion_ids`, `token_weights` and a given `label`, and counts of the others.

    Drops completions longer than `max_length` tokens, without a token, or without a weighted one. Raises `UserError`
    if `token_weights` and the completion differ in length, a given id is not below the model's `num_ids`, or nothing
    is left. Also as `tokenize`.
    """
    kept = []
    number_of = dict.fromkeys(("long", "empty", "unweighted", "cut"), 0)
    for number, row in enumerate(rows):
        place, weights = _place(row, number), row.get("token_weights")
        tokens = _tokens(tokenizer, row, "", max_length=max_length, place=place, num_ids=num_ids)
        if isinstance(tokens, str):
            number_of[tokens] += 1
            continue
        if weights is not None and not any(weights):
            number_of["unweighted"] += 1
            continue
        if weights is None:
            weights = [1.0] * len(tokens.completion_ids)
        if len(weights) != len(tokens.completion_ids):
            raise UserError(
                f"{place}: token_weights has {len(weights)} entries for {len(tokens.completion_ids)} completion tokens; "
                "give one a token (the end included where the completion finished), made with this tokenizer."
            )
        number_of["cut"] += tokens.cut
        kept.append(
            {
                "prompt_ids": tokens.prompt_ids,
                "completion_ids": tokens.completion_ids,
                "token_weights": list(weights),
            }
            | ({"label": row["label"]} if "label" in row else {})
        )
    counts = Counts(**number_of)
    return _some(kept, counts, max_length), counts


def counted_pairs(
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[PairRow],
    *,
    max_length: int,
    num_ids: int | None = None,
) -> tuple[list[dict[str, Any]], Counts]:
    """Return rows with `prompt_ids`, `chosen_ids` and `rejected_ids`, and counts of the others.

    Both sides follow the same prompt, cut so that the longer of them fits. Drops pairs with a side that has no tokens
    or more than `max_length`, and pairs whose sides are the same tokens. Raises `UserError` if a given id is not
    below the model's `num_ids`, nothing is left, or as `tokenize`.
    """
    kept = []
    number_of = dict.fromkeys(("long", "empty", "equal", "cut"), 0)
    for number, row in enumerate(rows):
        place = _place(row, number)
        before = opened(tokenizer, row["prompt"], template=row.get("template"), place=place)
        chosen, rejected = (
            _tokens(tokenizer, row, side, max_length=max_length, place=place, num_ids=num_ids, before=before)
            for side in ("chosen", "rejected")
        )
        if isinstance(chosen, str) or isinstance(rejected, str):
            number_of[chosen if isinstance(chosen, str) else str(rejected)] += 1
            continue
        if chosen.completion_ids == rejected.completion_ids:
            number_of["equal"] += 1
            continue
        number_of["cut"] += chosen.cut or rejected.cut
        room = max_length - max(len(chosen.completion_ids), len(rejected.completion_ids))
        kept.append(
            {
                "prompt_ids": cut_left(tokenizer, chosen.prompt_ids, room),
                "chosen_ids": chosen.completion_ids,
                "rejected_ids": rejected.completion_ids,
            }
        )
    counts = Counts(**number_of)
    return _some(kept, counts, max_length), counts


def _tokens(
    tokenizer: PreTrainedTokenizerBase,
    row: Mapping[str, Any],
    side: str,
    *,
    max_length: int,
    place: str,
    num_ids: int | None,
    before: Opened | None = None,
) -> Tokenized | str:
    """Return the ids of a row's completion, or of a pair's `side`; without any, the reason: `long` or `empty`."""
    text, lead = (side, f"{side}_") if side else ("completion", "")
    column = f"{lead}token_ids" if side else "completion_ids"
    ids = row.get(column)
    if ids and not 0 <= min(ids) <= max(ids) < (num_ids or math.inf):
        bound = "" if num_ids is None else f" and below {num_ids}, the number of the model's embeddings"
        raise UserError(
            f"{place}: `{column}` has the ids {min(ids)} to {max(ids)}: they must be at least 0{bound}. Give ids of this "
            "model's tokenizer, or remove them."
        )
    finished = row.get(f"{lead}finished", True)
    completion = row.get(f"{lead}message") or row[text]
    tokens = tokenize(
        tokenizer,
        row["prompt"],
        completion,
        finished=finished,
        completion_ids=ids,
        max_length=max_length,
        template=row.get("template"),
        place=place,
        before=before,
    )
    if tokens is not None:
        return tokens
    return "empty" if ids == [] or (not finished and not completion) else "long"


def _place(row: Mapping[str, Any], number: int) -> str:
    """Return the row's name in errors."""
    named = row.get("prompt_id") or row.get("id")
    return f"prompt {named}" if named else f"row {number + 1}"


def _some(kept: list[dict[str, Any]], counts: Counts, max_length: int) -> list[dict[str, Any]]:
    if not kept and not counts.dropped:
        raise UserError("there is no row to train on: the data set is empty.")
    if not kept:
        raise UserError(
            f"no row is left to train on: all {counts.dropped} were dropped ({counts.reasons(max_length)}). {counts.advice}"
        )
    return kept
