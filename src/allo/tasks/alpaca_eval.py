"""AlpacaEval 2: 805 instructions with the baseline's replies for a judge to compare with (arXiv 2404.04475)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from allo.files.records import Prompt
from allo.tasks import base

HUB = base.HubFile("tatsu-lab/alpaca_eval", "alpaca_eval_gpt4_baseline.json")
BASELINE = "gpt4_1106_preview"
"""The author of the baseline's replies, as AlpacaEval names it."""


def load(split: str, *, folder: Path | None = None) -> Iterator[Prompt]:
    """Yield prompts of `test`: the bare instruction; `solution` is the baseline's reply, `answer` is None."""
    return base.load_instructions("alpaca_eval", split, folder=folder, hub=HUB, from_hub=from_hub)


def from_hub(row: dict[str, Any]) -> dict[str, Any]:
    return {"question": row["instruction"], "answer": row["output"]}
