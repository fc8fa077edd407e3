"""MAWPS: short arithmetic word problems, without rationales (Koncel-Kedziorski et al., NAACL 2016)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from allo.files.records import Prompt
from allo.tasks import base

HUB = base.Hub("MU-NLPC/Calc-mawps")


def load(split: str, *, folder: Path | None = None) -> Iterator[Prompt]:
    """Yield prompts of `train`, `validation` (hub only) or `test`; the answer is a number."""
    return base.load("mawps", split, folder=folder, hub=HUB, from_hub=from_hub)


def from_hub(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row in our form; the hub groups thousands with underscores."""
    return {"question": row["question"], "answer": str(row["result"]).replace("_", "")}
