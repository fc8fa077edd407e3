"""StrategyQA: yes/no questions with implicit steps, and the facts that answer them (arXiv 2101.02235)."""

from functools import partial
from typing import Any

from allo.tasks import base

HUB = base.Hub("ChilleD/StrategyQA")


def from_hub(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "question": row["question"],
        "choices": ["yes", "no"],
        "answer": "yes" if row["answer"] else "no",
        "solution": row["facts"],
    }


load = partial(base.load, "strategyqa", hub=HUB, from_hub=from_hub)
"""Yields prompts of `train` or `test`; the options are `yes` and `no`."""
