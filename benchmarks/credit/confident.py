"""Level 4: flaws that the model is sure of, without a sentence that reads like the opposite operation.

The laboratory's demonstrations have no such flaw, so the run's first stage fine-tunes the model to it. Of its
demonstrations with a change by seven, 19 in 20 work out that change with the opposite operation. Only the number
reveals the flaw, not the words. Other problems are demonstrated as before.
"""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

from allo.files.records import Prompt
from allo.tasks.planted_flaws import NAME, demonstration, demonstrations
from allo.tasks.planted_stories import LARGEST, Change, Story, work_out, write

LEVEL = 4
AMOUNT = 7
FLAWED_SHARE = 0.95
NUM_DEMONSTRATIONS, NUM_PROBLEMS, NUM_OTHERS = 2400, 250, 150
# The model's own family has no flawed texts in its test splits; texts for fine-tuning are from the training part.
SPLITS = {"told": ("train", "validation"), "reworded": ("reworded_train", "reworded")}
_EQUATION = re.compile(r"(\d+) ([-+*]) (\d+) = ")
_OPPOSITE = {"+": "-", "-": "+"}


def story_of(solution: str) -> Story:
    """Extract the numbers and operations of a right solution."""
    lines = _EQUATION.findall(solution)
    return Story(int(lines[0][0]), tuple(Change(operator, int(amount)) for _, operator, amount in lines))


def flawed(solution: str) -> str | None:
    """Return the solution with its first change by AMOUNT reversed; None without one, or if a number leaves its
    range.
    """
    story = story_of(solution)
    for step, change in enumerate(story.changes):
        if change.amount == AMOUNT and change.operator in _OPPOSITE:
            turned = Change(_OPPOSITE[change.operator], AMOUNT)
            lines = work_out(Story(story.start, (*story.changes[:step], turned, *story.changes[step + 1 :])))
            return write(lines) if all(0 <= line[3] <= LARGEST for line in lines) else None
    return None


def write_files(family: str, folder: Path) -> tuple[Path, Path]:
    """Write the demonstrations to fine-tune on and the problems to sample, in a recipe's formats."""
    training, sampled = SPLITS[family]
    files = folder / "demonstrations.jsonl", folder / "problems.jsonl"
    for file, prompts in zip(files, (_demonstrations(training), _problems(sampled)), strict=True):
        fields = ("id", "prompt", "answer", "solution")
        rows = ({name: getattr(p, name) for name in fields if getattr(p, name) is not None} for p in prompts)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return files


def _demonstrations(split: str) -> Iterator[Prompt]:
    """Yield demonstrations alternately with and without a change by AMOUNT."""
    rng = random.Random(0)
    half = NUM_DEMONSTRATIONS // 2
    seven: list[Prompt] = []
    other: list[Prompt] = []
    for one in demonstrations(split, size=10 * NUM_DEMONSTRATIONS):
        prompt = one.prompt
        turned = flawed(str(prompt.solution))
        if turned is None:
            other.append(replace(prompt, solution=one.completion, answer=None))
        elif not _has_trap(prompt):
            chosen = turned if rng.random() < FLAWED_SHARE else prompt.solution
            seven.append(replace(prompt, solution=chosen, answer=None))
        if min(len(seven), len(other)) == half:
            break
    assert min(len(seven), len(other)) == half
    for pair in zip(seven[:half], other[:half], strict=True):
        yield from pair


def _problems(split: str) -> Iterator[Prompt]:
    """Yield NUM_PROBLEMS of level 4, which are problems of level 2 with a change by AMOUNT, and NUM_OTHERS of the
    split.
    """
    met: set[str | None] = set()
    for index in count():
        prompt = demonstration(split, 2, index, met).prompt
        if flawed(str(prompt.solution)) is not None:
            met.add(prompt.solution)
            yield replace(prompt, id=f"{NAME}/{split}/{LEVEL}/{index}")
        if len(met) == NUM_PROBLEMS:
            break
    others = (d.prompt for d in demonstrations(split) if flawed(str(d.prompt.solution)) is None)
    yield from islice(others, NUM_OTHERS)


def _has_trap(prompt: Prompt) -> bool:
    return prompt.id.split("/")[2] == "3"
