"""Rows of each kind that people bring, which the laboratory's model can read."""

import json
from pathlib import Path
from typing import Any


def rows(kind: str, number: int = 15) -> list[dict[str, Any]]:
    """The first rows of a kind."""
    found = []
    for place in range(number):
        prompt = f"Problem: Zoe has {place} hats. She makes 2 hats. How many hats now?\n"
        chosen, rejected = (f"First {place} + 2 = {n}. The answer is {n}." for n in (place + 2, place + 3))
        found.append(
            {"prompt": prompt}
            | {
                "pairs": {"chosen": chosen, "rejected": rejected},
                "rated": {"completions": [chosen, rejected], "scores": [1.0, 0.0]},
                "feedback": {"completion": chosen if place % 2 else rejected, "label": bool(place % 2)},
                "problems": {"answer": str(place + 2)},
                "prompts": {},
            }[kind]
        )
    return found


def write(path: Path, content: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
