"""Arena-Hard-Auto 0.1: 500 hard user requests with the baseline's replies (arXiv 2406.11939)."""

from functools import partial
from typing import Any

from allo.tasks import base

BASELINE = "gpt-4-0314"
"""The author of the baseline's replies, as Arena-Hard names it."""

HUB = base.HubFile("lmarena-ai/arena-hard-auto", f"data/arena-hard-v0.1/model_answer/{BASELINE}.jsonl")


def from_hub(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row in our form. The baseline's file repeats each request before its reply; the id is the set's own."""
    asked, replied = row["messages"]
    return {"id": row["uid"], "question": asked["content"], "answer": replied["content"]["answer"]}


load = partial(base.load, "arena_hard", hub=HUB, from_hub=from_hub, instructions=True)
"""Yields prompts of `test`: the bare request; `solution` is the baseline's reply, `answer` is None."""
