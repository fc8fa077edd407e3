"""GSM8K: grade-school word problems with worked solutions (arXiv 2110.14168)."""

import re
from functools import partial
from typing import Any

from allo.tasks import base

HUB = base.Hub("openai/gsm8k", ("main",))
CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")


def from_hub(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row in our form. The hub joins rationale and answer with `####`, and adds calculator marks."""
    solution, answer = CALCULATOR_MARK.sub("", row["answer"]).split("####")
    return {
        "question": row["question"],
        "answer": answer.strip().replace(",", ""),
        "solution": solution.strip(),
    }


load = partial(base.load, "gsm8k", hub=HUB, from_hub=from_hub)
"""Yields prompts of `train` or `test`; the answer is a number."""
