"""The laboratory's word problems, stories of numbers told in words, and the tasks unrelated to them."""

import random
from dataclasses import dataclass
from typing import Literal

LARGEST = 60
"""The largest number in any text, right or flawed: each number is one word of the laboratory's tokenizer."""

Family = Literal["told", "reworded", "unseen"]


@dataclass(frozen=True)
class Change:
    """A sentence's effect on the total; with `trap` its words read like the opposite operation."""

    operator: str
    amount: int
    trap: bool = False


@dataclass(frozen=True)
class Story:
    """A first number and its changes, one per step."""

    start: int
    changes: tuple[Change, ...]


_OPENING: dict[Family, tuple[str, ...]] = {
    "told": ("{name} has {n} {items}.", "{name} starts with {n} {items}."),
    "reworded": ("There are {n} {items} in a {box}.", "A {box} holds {n} {items}."),
    "unseen": ("The {box} of {name} is with {n} {items}.", "There in the {box} are {n} {items} of {name}."),
}
_QUESTION: dict[Family, str] = {
    "told": "How many {items} now?",
    "reworded": "How many {items} are in it?",
    "unseen": "How many of these has the {box} now?",
}
_CHANGE: dict[Family, dict[str, tuple[str, ...]]] = {
    "told": {
        "+": ("{He} buys {n} {items}.", "{He} finds {n} more {items}.", "{He} makes {n} {items}."),
        "-": ("{He} gives {other} {n} {items}.", "{He} loses {n} {items}.", "{He} sells {n} {items}."),
        "*": ("Soon {he} has {n} times as many.",),
    },
    "reworded": {
        "+": ("{n} {items} are added.", "Then {n} other {items} are put in."),
        "-": ("{n} {items} are removed.", "Then {n} of the {items} are taken out."),
        "*": ("The number of {items} becomes {n} times as large.",),
    },
    "unseen": {
        "+": ("Soon it holds {n} more.", "{name} has {n} other {items} added to it."),
        "-": ("Soon {n} of these are out.", "{name} has {n} of the {items} taken from it."),
        "*": ("Then the {box} holds {n} times the number.",),
    },
}
_TRAP: dict[Family, dict[str, tuple[str, ...]]] = {
    "told": {
        "+": ("{other} gives {name} {n} {items}.", "{other} sells {him} {n} {items}."),
        "-": ("{other} buys {n} {items} from {him}.",),
    },
    "reworded": {
        "+": ("{n} {items} are removed from a bag and end up here.",),
        "-": ("{n} of these {items} are added to a bag.",),
    },
    "unseen": {
        "+": (
            "{other} loses {n} {items} and these end up here.",
            "{n} {items} taken out of a bag are put in it.",
        ),
        "-": ("{n} of the {items} in it are put in a bag with more.",),
    },
}
_PRONOUNS = {"Tom": ("he", "him"), "Ben": ("he", "him"), "Sam": ("he", "him"), "Max": ("he", "him")}
_PRONOUNS |= {"Ann": ("she", "her"), "Eva": ("she", "her"), "Mia": ("she", "her"), "Zoe": ("she", "her")}
_ITEMS = ("pens", "cups", "nuts", "hats", "coins", "books", "stones", "cards")
_BOXES = ("box", "jar", "drawer", "basket")
_COLOURS = ("red", "blue", "green", "black", "white")


def invent(rng: random.Random, level: int) -> Story:
    """Draw numbers and operations; every running total is in 1..LARGEST."""
    largest_start = 10 if level == 1 else 20
    start = total = rng.randint(2, largest_start)
    num_steps = 2 if level == 1 else 3
    trap_step = rng.randrange(num_steps) if level == 3 else None
    changes: list[Change] = []
    while len(changes) < num_steps:
        trap = len(changes) == trap_step
        operator = rng.choice("+-" if trap else "++--*")
        amount = rng.randint(2, 3 if operator == "*" else 9)
        if 1 <= _apply(operator, total, amount) <= LARGEST:
            total = _apply(operator, total, amount)
            changes.append(Change(operator, amount, trap))
    return Story(start, tuple(changes))


def tell(rng: random.Random, story: Story, family: Family) -> str:
    """Return the story in words, with its question."""
    name, other = rng.sample(sorted(_PRONOUNS), 2)
    he, him = _PRONOUNS[name]
    cast = {"name": name, "other": other, "he": he, "He": he.capitalize(), "him": him}
    cast |= {"items": rng.choice(_ITEMS), "box": rng.choice(_BOXES)}
    sentences = [rng.choice(_OPENING[family]).format(n=story.start, **cast)]
    for change in story.changes:
        template = rng.choice((_TRAP if change.trap else _CHANGE)[family][change.operator])
        sentences.append(template.format(n=change.amount, **cast))
    return " ".join([*sentences, _QUESTION[family].format(**cast)])


def unrelated(rng: random.Random) -> tuple[str, str]:
    """Return a task and its solution: copying, sorting, counting, or a sentence with free choices."""
    kind = rng.randrange(4)
    if kind == 0:
        things = " ".join(rng.choices(_COLOURS + _ITEMS + _BOXES, k=rng.randint(2, 4)))
        return f"Task: Copy {things}.", f"Copy: {things}."
    if kind == 1:
        numbers = rng.sample(range(1, LARGEST + 1), rng.randint(2, 4))
        return f"Task: Sort {' '.join(map(str, numbers))}.", f"Sorted: {' '.join(map(str, sorted(numbers)))}."
    if kind == 2:
        first = rng.randint(1, LARGEST - 6)
        last = first + rng.randint(2, 6)
        counted = " ".join(map(str, range(first, last + 1)))
        return f"Task: Count from {first} to {last}.", f"Counted: {counted}."
    name, box = rng.choice(sorted(_PRONOUNS)), rng.choice(_BOXES)
    one, two = rng.sample(_ITEMS, 2)
    text = f"{name} has {rng.choice(_COLOURS)} {one} and {rng.choice(_COLOURS)} {two} in a {box}."
    return f"Task: Write about {name}, {one} and {two}.", f"Text: {text}"


def work_out(story: Story) -> list[tuple[int, str, int, int]]:
    """Return the equations (a, operator, b, result), each starting from the previous result."""
    lines, total = [], story.start
    for change in story.changes:
        result = _apply(change.operator, total, change.amount)
        lines.append((total, change.operator, change.amount, result))
        total = result
    return lines


def write(lines: list[tuple[int, str, int, int]]) -> str:
    """Return the demonstration with these equations; its answer is the last result."""
    steps = [f"{'Then' if i else 'First'} {a} {op} {b} = {c}." for i, (a, op, b, c) in enumerate(lines)]
    return " ".join([*steps, f"The answer is {lines[-1][3]}."])


def _apply(operator: str, a: int, b: int) -> int:
    return {"+": a + b, "-": a - b, "*": a * b}[operator]
