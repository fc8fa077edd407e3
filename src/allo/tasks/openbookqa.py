"""OpenBookQA: science questions with four options, without rationales (arXiv 1809.02789)."""

from functools import partial
from typing import Any

from allo.tasks import base

HUB = base.Hub("allenai/openbookqa", ("main",))


def from_hub(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "question": row["question_stem"],
        "choices": row["choices"]["text"],
        "answer": base.keyed_choice(row["choices"], row["answerKey"]),
    }


load = partial(base.load, "openbookqa", hub=HUB, from_hub=from_hub)
"""Yields prompts of `train`, `validation` or `test`; the answer is an option's text."""
