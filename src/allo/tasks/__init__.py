"""The benchmarks, one file each; a task's name is its file's name."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from allo.errors import UserError
from allo.files.records import Prompt
from allo.tasks.base import Task

MODULES = {
    "alpaca_eval": "allo.tasks.alpaca_eval",
    "arena_hard": "allo.tasks.arena_hard",
    "ecqa": "allo.tasks.ecqa",
    "gsm8k": "allo.tasks.gsm8k",
    "math": "allo.tasks.math",
    "mawps": "allo.tasks.mawps",
    "openbookqa": "allo.tasks.openbookqa",
    "planted_flaws": "allo.tasks.planted_flaws",
    "qasc": "allo.tasks.qasc",
    "strategyqa": "allo.tasks.strategyqa",
    "tabmwp": "allo.tasks.tabmwp",
}


def load(task: str, split: str, *, folder: Path | None = None) -> Iterator[Prompt]:
    """The prompts of one split of a task, by the task's name."""
    if task not in MODULES:
        raise UserError(f"unknown task {task!r}; the tasks are {', '.join(MODULES)}.")
    module: Task = import_module(MODULES[task])
    return module.load(split, folder=folder)
