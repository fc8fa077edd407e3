"""Rows that are held out of training, to be measured before and after it."""

from collections.abc import Sequence
from typing import TypeVar

from allo.errors import UserError
from allo.files.artifacts import sha256_text
from allo.files.records import Feedback, Message, Pair, Prompt
from allo.recipe.sources import AUTO
from allo.tasks.overlap import words

Record = TypeVar("Record", Pair, Feedback, Prompt)
HeldOut = int | float | str | None

SHARE, LEAST, MOST = 0.05, 32, 512
SHARE_OF_FEW = 0.2
"""`auto` never takes more than this, however few the prompts."""
ENOUGH = 25  # for a share that is certain to 20 points at 95%


def split(rows: Sequence[Record], held_out: HeldOut, *, seed: int) -> tuple[list[Record], list[Record]]:
    """Return the rows to train on and the held-out rows, each in their order; no prompt is among both.

    Prompts are the same if their words are, whatever their case, punctuation and roles. Which ones are held out
    depends on the seed and on their words, not on their order. Raises `UserError` if none would be left to train on.
    """
    if not held_out:
        return list(rows), []
    keys = [_key(row.prompt) for row in rows]
    distinct = set(keys)
    number = number_of(held_out, len(distinct))
    if number >= len(distinct) and held_out != AUTO:
        raise UserError(
            f"data.held_out: {held_out} holds out all {len(distinct)} distinct prompts, and none is left to train on: "
            "lower it, or set it to 0."
        )
    taken = set(sorted(distinct, key=lambda key: (sha256_text(f"{seed}\n{key}"), key))[:number])
    kept = [row for row, key in zip(rows, keys, strict=True) if key not in taken]
    return kept, [row for row, key in zip(rows, keys, strict=True) if key in taken]


def number_of(held_out: HeldOut, num_prompts: int) -> int:
    """Return the number of prompts to hold out of `num_prompts` distinct ones."""
    if held_out == AUTO:
        least = min(LEAST, int(SHARE_OF_FEW * num_prompts))
        return min(MOST, max(least, round(SHARE * num_prompts)))
    if isinstance(held_out, float):
        return max(1, round(held_out * num_prompts))
    return held_out if isinstance(held_out, int) else 0


def sentence(kept: Sequence[Record], held_out: Sequence[Record]) -> str:
    """Return how many of all rows are held out, in words."""
    num_rows = len(kept) + len(held_out)
    kinds = {Pair: "pairs", Feedback: "labelled completions"}
    kind = next((kinds.get(type(row), "prompts") for row in held_out), "")
    if not held_out:
        return f"none of {num_rows:,} rows is held out, since the prompts are too few: nothing is measured on them"
    said = (
        f"{len(held_out):,} of {num_rows:,} {kind} are held out of training, and measured before and after it"
    )
    if len(held_out) >= ENOUGH:
        return said
    return f"{said}; so few that a share of them is uncertain by {98 / len(held_out) ** 0.5:.0f} points either way"


def _key(prompt: str | list[Message]) -> str:
    text = prompt if isinstance(prompt, str) else "\n".join(turn.get("content") or "" for turn in prompt)
    return " ".join(words(text)) or text
