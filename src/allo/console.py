"""What a person sees while a run works: one console, one progress bar; quiet off a terminal."""

from collections.abc import Callable, Generator, Iterable, Iterator
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
    with bar(description, total=total, done=done) as advance:
        for item in items:
            yield item
            advance(1, "")


@contextmanager
def bar(description: str, *, total: int, done: int = 0) -> Iterator[Callable[[int, str], None]]:
    """A bar that starts at `done` of `total`, to be advanced by a number with a short note; no output off a terminal."""
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=total, completed=done, note="")
        yield lambda number, note: progress.update(task, advance=number, note=note)
