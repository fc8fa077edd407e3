"""ECQA: common-sense questions with five options and explanations (Aggarwal et al., ACL 2021)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from allo.files.records import Prompt
from allo.tasks import base

HUB = base.Hub("tasksource/ecqa")


def load(split: str, *, folder: Path | None = None) -> Iterator[Prompt]:
    """Yield prompts of `train`, `validation` or `test`; the answer is an option's text."""
    return base.load("ecqa", split, folder=folder, hub=HUB, from_hub=from_hub)


def from_hub(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row in our form. `taskA_pos` explains the right option only; `taskB` also discusses the wrong ones."""
    return {
        "question": row["q_text"],
        "choices": [row[f"q_op{number}"] for number in range(1, 6)],
        "answer": row["q_ans"],
        "solution": row["taskA_pos"],
    }
