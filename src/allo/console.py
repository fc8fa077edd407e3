"""The console output of a working run: one console, one progress bar; quiet off a terminal.

All shown text passes through `printable`, since some comes from others: server replies, names of tensors and files,
rows, templates.
"""

import re
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

Item = TypeVar("Item")

console = Console(stderr=True, highlight=False, emoji=False)

# Sequences that a terminal obeys: colours and movements, titles, links and other strings up to their end, the rest.
# Each begins with ESC and a character, or with an 8-bit control.
_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x00-\x08\x0a-\x1f\x7f-\x9f]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
)
# Controls except tab and line feed, text direction marks, characters without width, fillers, invisible tags, and
# halves of surrogate pairs, which cannot be written. Joiners stay, since scripts and emoji need them.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff]"
)


@contextmanager
def hushed() -> Iterator[None]:
    """Print nothing and show no bar inside the block."""
    before = console.quiet
    console.quiet = True
    try:
        yield
    finally:
        console.quiet = before


def printable(text: object) -> str:
    """Return the text without characters that a terminal would obey or nobody would see; lines and tabs stay."""
    return _UNSEEN.sub("", _SEQUENCES.sub("", str(text).replace("\r\n", "\n").replace("\r", " ")))


def cell(text: object) -> Text:
    """Return the text for a table, without control sequences and never read as markup."""
    return Text(printable(text))


def say(text: str) -> None:
    """Print a plain line to standard error; `text` is never read as markup."""
    console.print(cell(text), soft_wrap=True)


def tell(text: object) -> None:
    """Print a plain line to standard output, for people and for pipes."""
    sys.stdout.write(f"{printable(text)}\n")


def track(items: Iterable[Item], description: str, *, total: int, done: int = 0) -> Generator[Item]:
    """Yield `items` and show a progress bar from `done` of `total`. If the output is no terminal, nothing is shown."""
    with bar(description, total=total, done=done) as advance:
        for item in items:
            yield item
            advance(1, "")


@contextmanager
def bar(description: str, *, total: int, done: int = 0) -> Iterator[Callable[[int, str], None]]:
    """Show a bar from `done` of `total`, and yield a function that advances it by a number with a short note.

    Nothing is shown off a terminal.
    """
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=total, completed=done, note="")
        yield lambda number, note: progress.update(task, advance=number, note=printable(note))
