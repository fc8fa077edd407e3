"""MAWPS: short arithmetic word problems, without rationales (Koncel-Kedziorski et al., NAACL 2016)."""

from functools import partial
from typing import Any

from allo.tasks import base

HUB = base.Hub("MU-NLPC/Calc-mawps")


def from_hub(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row in our form; the hub groups thousands with underscores."""
    return {"question": row["question"], "answer": str(row["result"]).replace("_", "")}


load = partial(base.load, "mawps", hub=HUB, from_hub=from_hub)
"""Yields prompts of `train`, `validation` (hub only) or `test`; the answer is a number."""
