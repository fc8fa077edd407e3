"""AlpacaEval 2: 805 instructions, and the baseline's replies that a judge compares with (arXiv 2404.04475)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from allo.files.records import Prompt
from allo.tasks import base

HUB = base.HubFile("tatsu-lab/alpaca_eval", "alpaca_eval_gpt4_baseline.json")
BASELINE = "gpt4_1106_preview"
"""Who wrote the baseline's replies, as AlpacaEval names it."""


def load(split: str, *, folder: Path | None = None) -> Iterator[Prompt]:
    """Prompts of `test`: the instruction itself; `solution` is the baseline's reply, `answer` None."""
    return base.load_instructions("alpaca_eval", split, folder=folder, hub=HUB, from_hub=from_hub)


def from_hub(row: dict[str, Any]) -> dict[str, Any]:
    return {"question": row["instruction"], "answer": row["output"]}
