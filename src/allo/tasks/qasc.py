"""QASC: science questions with eight options, answered by joining two facts (arXiv 1910.11473)."""

from functools import partial
from typing import Any

from allo.tasks import base

# The hub's test split hides its answers.
HUB = base.Hub("allenai/qasc", splits={"test": "validation"})


def from_hub(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row in our form; the rationale is both facts, then their conclusion."""
    return {
        "question": row["question"],
        "choices": row["choices"]["text"],
        "answer": base.keyed_choice(row["choices"], row["answerKey"]),
        "solution": "\n".join([row["fact1"], row["fact2"], row["combinedfact"]]),
    }


load = partial(base.load, "qasc", hub=HUB, from_hub=from_hub)
"""Yields prompts of `train` or `test`; the answer is an option's text."""
