"""OpenBookQA: science questions with four options, without rationales (arXiv 1809.02789)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from allo.files.records import Prompt
from allo.tasks import base

HUB = base.Hub("allenai/openbookqa", ("main",))


def load(split: str, *, folder: Path | None = None) -> Iterator[Prompt]:
    """Yield prompts of `train`, `validation` or `test`; the answer is an option's text."""
    return base.load("openbookqa", split, folder=folder, hub=HUB, from_hub=from_hub)


def from_hub(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "question": row["question_stem"],
        "choices": row["choices"]["text"],
        "answer": base.keyed_choice(row["choices"], row["answerKey"]),
    }
