"""ECQA: common-sense questions with five options and explanations (Aggarwal et al., ACL 2021)."""

from functools import partial
from typing import Any

from allo.tasks import base

HUB = base.Hub("tasksource/ecqa")


def from_hub(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row in our form. `taskA_pos` explains the right option only; `taskB` also discusses the wrong ones."""
    return {
        "question": row["q_text"],
        "choices": [row[f"q_op{number}"] for number in range(1, 6)],
        "answer": row["q_ans"],
        "solution": row["taskA_pos"],
    }


load = partial(base.load, "ecqa", hub=HUB, from_hub=from_hub)
"""Yields prompts of `train`, `validation` or `test`; the answer is an option's text."""
