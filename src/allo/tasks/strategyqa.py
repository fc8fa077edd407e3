"""StrategyQA: yes/no questions with implicit steps, and the facts that answer them (arXiv 2101.02235)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from allo.files.records import Prompt
from allo.tasks import base

HUB = base.Hub("ChilleD/StrategyQA")


def load(split: str, *, folder: Path | None = None) -> Iterator[Prompt]:
    """Yield prompts of `train` or `test`; the options are `yes` and `no`."""
    return base.load("strategyqa", split, folder=folder, hub=HUB, from_hub=from_hub)


def from_hub(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "question": row["question"],
        "choices": ["yes", "no"],
        "answer": "yes" if row["answer"] else "no",
        "solution": row["facts"],
    }
