"""The benchmarks, one file each; `allo.recipe.tasks` lists them."""

from collections.abc import Iterator
from pathlib import Path

from allo.errors import UserError
from allo.files.records import Prompt
from allo.recipe.own_code import function_of
from allo.recipe.tasks import TASKS


def load(task: str, split: str, *, folder: Path | None = None) -> Iterator[Prompt]:
    """Return the prompts of one split of a benchmark, by its name."""
    if task not in TASKS:
        raise UserError(f"unknown task {task!r}; the tasks are {', '.join(sorted(TASKS))}.")
    prompts: Iterator[Prompt] = function_of(TASKS[task].function, key="task")(split, folder=folder)
    return prompts
