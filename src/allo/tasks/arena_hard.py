"""Arena-Hard-Auto 0.1: 500 hard requests of users, and the baseline's replies (arXiv 2406.11939)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from allo.files.records import Prompt
from allo.tasks import base

BASELINE = "gpt-4-0314"
"""Who wrote the baseline's replies, as Arena-Hard names it."""

HUB = base.HubFile("lmarena-ai/arena-hard-auto", f"data/arena-hard-v0.1/model_answer/{BASELINE}.jsonl")


def load(split: str, *, folder: Path | None = None) -> Iterator[Prompt]:
    """Prompts of `test`: the request itself; `solution` is the baseline's reply, `answer` None."""
    return base.load_instructions("arena_hard", split, folder=folder, hub=HUB, from_hub=from_hub)


def from_hub(row: dict[str, Any]) -> dict[str, Any]:
    """The baseline's file repeats each request before its reply. The id is the set's own, for its tools."""
    asked, replied = row["messages"]
    return {"id": row["uid"], "question": asked["content"], "answer": replied["content"]["answer"]}
