"""What a person sees while a run works: one console, one progress bar; quiet off a terminal."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")

console = Console(stderr=True, highlight=False, emoji=False)


@contextmanager
def hushed() -> Iterator[None]:
    """Nothing is said and no bar is shown inside the block."""
    before = console.quiet
    console.quiet = True
    try:
        yield
    finally:
        console.quiet = before


def say(text: str) -> None:
    """One plain line to standard error; `text` is never read as markup."""
    console.print(text, markup=False, soft_wrap=True)


def track(items: Iterable[Item], description: str, *, total: int, done: int = 0) -> Generator[Item]:
    """Yield `items` under a bar that starts at `done` of `total`; no output off a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=total, completed=done)
        for item in items:
            yield item
            progress.advance(task)
