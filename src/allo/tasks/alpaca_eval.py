"""AlpacaEval 2: 805 instructions with the baseline's replies for a judge to compare with (arXiv 2404.04475)."""

from functools import partial
from typing import Any

from allo.tasks import base

HUB = base.HubFile("tatsu-lab/alpaca_eval", "alpaca_eval_gpt4_baseline.json")
BASELINE = "gpt4_1106_preview"
"""The author of the baseline's replies, as AlpacaEval names it."""


def from_hub(row: dict[str, Any]) -> dict[str, Any]:
    return {"question": row["instruction"], "answer": row["output"]}


load = partial(base.load, "alpaca_eval", hub=HUB, from_hub=from_hub, instructions=True)
"""Yields prompts of `test`: the bare instruction; `solution` is the baseline's reply, `answer` is None."""
