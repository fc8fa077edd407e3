"""The benchmarks, one record each: recipe, loader, documents and benchmarks derive what they say from here."""

from dataclasses import dataclass
from typing import Annotated

from allo.recipe.choice import OneOf


@dataclass(frozen=True)
class Task:
    """A benchmark.

    `function` returns the prompts of a split, as `module:function`. `splits`: those that the hub and the folders of
    local rows both have.
    `has_answers`: whether a prompt has a right answer; otherwise a model judges. `trained_on`: whether the published
    recipes train on it. `is_generated`: whether its problems are invented here, on no hub and in no folder.
    """

    name: str
    function: str
    splits: tuple[str, ...] = ("train", "test")
    has_answers: bool = True
    trained_on: bool = False
    is_generated: bool = False


_ALL = ("train", "validation", "test")
TASKS = {
    task.name: task
    for task in (
        Task("planted_flaws", "allo.tasks.planted_flaws:load", _ALL, is_generated=True),
        Task("ecqa", "allo.tasks.ecqa:load", _ALL, trained_on=True),
        Task("qasc", "allo.tasks.qasc:load", trained_on=True),
        Task("openbookqa", "allo.tasks.openbookqa:load", _ALL),
        Task("strategyqa", "allo.tasks.strategyqa:load"),
        Task("gsm8k", "allo.tasks.gsm8k:load", trained_on=True),
        Task("math", "allo.tasks.math:load", trained_on=True),
        Task("mawps", "allo.tasks.mawps:load"),
        Task("tabmwp", "allo.tasks.tabmwp:load"),
        Task("alpaca_eval", "allo.tasks.alpaca_eval:load", ("test",), has_answers=False),
        Task("arena_hard", "allo.tasks.arena_hard:load", ("test",), has_answers=False),
    )
}
TaskName = Annotated[str, OneOf(TASKS, or_own=True)]
