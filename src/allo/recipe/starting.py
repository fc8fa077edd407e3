"""The recipes that a user begins with: one commented text a kind of rows."""

import re
from importlib.resources import files
from typing import Literal, get_args

StartKind = Literal["pairs", "feedback", "problems", "reward"]
START_KINDS: tuple[StartKind, ...] = get_args(StartKind)
ROWS_KEY: dict[StartKind, str] = {
    "pairs": "pairs",
    "feedback": "feedback",
    "problems": "file",
    "reward": "file",
}
"""The key of `data` that names the rows of each kind."""


def start_text(kind: StartKind) -> str:
    """Return the recipe of a kind, as it ships."""
    return _read(f"{kind}.yaml")


def reward_text() -> str:
    """Return the file of the reward function that the recipe for rewards names."""
    return _read("reward.py")


def run_name(text: str) -> str:
    """Return the name of a run's folder that is nearest to a text."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:200] or "run"


def _read(name: str) -> str:
    return (files("allo.recipe") / "start" / name).read_text(encoding="utf-8")
