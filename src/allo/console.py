"""The console output of a working run: one line of progress for the whole run, and what is said beside it.

On a terminal the line of progress stays below all others and counts down. Elsewhere it is printed once a minute. All
shown text passes through `printable`, since some comes from others: server replies, names of tensors and files,
rows, templates.
"""

import io
import re
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from typing import TypeVar

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

Item = TypeVar("Item")
Shown = TypeVar("Shown", "Work", "Run", "Among")

STEP = "step"
BAR = 10
"""The width of the bar before the line of progress."""
MINUTE = 60.0
clock = time.monotonic

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


def printable(text: object) -> str:
    """Return the text without characters that a terminal would obey or nobody would see; lines and tabs stay."""
    return _UNSEEN.sub("", _SEQUENCES.sub("", str(text).replace("\r\n", "\n").replace("\r", " ")))


def cell(text: object) -> Text:
    """Return the text for a table, without control sequences and never read as markup."""
    return Text(printable(text))


def say(text: str, *, wrapped: bool = False) -> None:
    """Print a plain line to standard error; `text` is never read as markup.

    On a terminal it is wrapped between words; words stay whole, so that paths and commands can be copied. Elsewhere it
    is one line to search for, unless it is to be `wrapped`.
    """
    if not _State.still:
        console.print(_wrapped(text) if wrapped or on_terminal() else cell(text), soft_wrap=True)


def note(stage: str, text: str) -> None:
    """Print what a stage has begun or done, in lines of at most the console's width; nothing with `--quiet`."""
    if not (_State.still or _State.no_progress):
        console.print(_wrapped(f"{stage:<9} {printable(text)}", indent=10), soft_wrap=True)


def tell(text: object) -> None:
    """Print a plain line to standard output, for people and for pipes."""
    sys.stdout.write(f"{printable(text)}\n")


def on_terminal() -> bool:
    """Return whether a person sees the output as it comes, and a line can be drawn again.

    Standard error itself is asked, since FORCE_COLOR makes rich take a file for a terminal.
    """
    return console.is_interactive and console.file.isatty()


def span(seconds: float) -> str:
    """Return a time in words, in one or two units."""
    if seconds < 1:
        return "less than 1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 36:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round(seconds / 3600), 24)
    whole = "1 day" if days == 1 else f"{days} days"
    return f"{whole} {hours} h" if hours else whole


@contextmanager
def hushed(*, but_progress: bool = False) -> Iterator[None]:
    """Say nothing inside the block; with `but_progress`, the line of progress stays."""
    quiet, still = console.quiet, _State.still
    console.quiet, _State.still = quiet or not but_progress, True
    try:
        yield
    finally:
        console.quiet, _State.still = quiet, still


def show_no_progress(asked: bool) -> bool:
    """Show no progress from now on, if that is asked: only warnings, problems and results are printed."""
    _State.no_progress = asked
    return asked


@contextmanager
def only_ours() -> Iterator[None]:
    """Drop what others write to standard error inside the block, such as bars that cannot be switched off."""
    with redirect_stderr(_Dropped(console.file)):
        yield


class _Dropped(io.StringIO):
    """A file that nobody reads; rich finds the one behind it, as behind its own."""

    def __init__(self, shown: object) -> None:
        super().__init__()
        self.rich_proxied_file = shown


def _wrapped(text: str, *, indent: int = 0) -> Text:
    """Return the text wrapped between words; a line that goes on is indented like its beginning, or by `indent`."""
    lines: list[str] = []
    for line in printable(text).expandtabs().split("\n"):
        lines += textwrap.wrap(
            line,
            console.width,
            subsequent_indent=" " * (indent or len(line) - len(line.lstrip(" "))),
            replace_whitespace=False,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [""]
    return Text("\n".join(lines))


Part = tuple[int, str]
"""A part of the line of progress, and its rank: on a narrow screen, the part with the highest rank goes first."""
interrupted_at: list[str] = []  # the stage, its number and step: parts of rank 4, 0 and 1


@dataclass(eq=False)
class Work:
    """Work in countable parts: `done` of `total`. Calling it adds to `done`, with a short note."""

    description: str
    unit: str
    total: int
    done: int = 0
    note: str = ""

    def __post_init__(self) -> None:
        self.begin(self.total, self.done)

    def begin(self, total: int, done: int = 0) -> None:
        """Measure the pace from now on, when `done` of `total` are done."""
        self.total, self.done, self._before = total, done, done
        self._began = self._last = clock()

    def __call__(self, number: int, note: str = "") -> None:
        self.done, self.note, self._last = self.done + number, printable(note), clock()

    def left(self) -> float | None:
        """Return the seconds left at the pace so far; None before a part is done."""
        made = self.done - self._before
        if made <= 0:
            return None
        pace = (self._last - self._began) / made
        return max(0.0, pace * (self.total - self.done) - (clock() - self._last))

    def share(self) -> float:
        return min(1.0, self.done / self.total) if self.total else 0.0

    def parts(self) -> Iterator[Part]:
        yield 6, printable(self.description)
        yield 1, f"{self.unit} {self.done}/{self.total}" if self.total else ""
        yield 5, self.note


Rest = Callable[[float, float | None], float | None]
"""Returns the seconds left of a run, from those that its stage has taken and has left; None if they are unknown."""


@dataclass(eq=False)
class Run:
    """The stages of a run, of which one is at work."""

    total: int
    rest: Rest = lambda taken, left: None
    number: int = 0
    stage: str = ""

    def __post_init__(self) -> None:
        self._began = clock()

    def begin(self, number: int, stage: str, rest: Rest) -> None:
        self.number, self.stage, self.rest, self._began = number, stage, rest, clock()

    def taken(self) -> float:
        """Return the seconds that the stage, or what comes before the first, has taken in this process."""
        return clock() - self._began

    def parts(self) -> Iterator[Part]:
        yield 4, f"stage {self.number} of {self.total}" if self.stage else "checking the input"
        yield 0, self.stage


@dataclass(eq=False)
class Among:
    """One of several runs; `all`, if given, counts those that are done."""

    words: str
    all: Work | None = None

    def parts(self) -> Iterator[Part]:
        yield 2, self.words


class _State:
    """The output's state: `shown` is what is at work, outermost first."""

    shown: list[Work | Run | Among] = []
    live: Live | None = None
    still = False
    no_progress = False


def line(width: int, *, stage: bool = True) -> str:
    """Return the line of progress in at most `width` columns, with or without the stage's name; empty if nothing works."""
    shown = list(_State.shown)
    parts: list[Part] = []
    for part in (part for item in shown for part in item.parts()):
        if part[1] not in ("", *(words for _, words in parts)):  # a stage and its work may share a name
            parts.append(part)
    parts = [part for part in parts if stage or part[0]]
    parts += _times(shown) if parts else []
    while parts and cell_len(text := ", ".join(words for _, words in parts)) > width:
        if len(parts) == 1:
            return set_cell_size(text, width)
        parts.remove(max(parts))
    return ", ".join(words for _, words in parts)


def _times(shown: Sequence[Work | Run | Among]) -> list[Part]:
    """Return the estimates, as far as they are measured or known."""
    outer, inner = shown[0], shown[-1]
    runs = [item for item in shown if isinstance(item, Run)]
    left = inner.left() if isinstance(inner, Work) else None
    found = [] if left is None else [(3, f"{span(left)} left")]
    if left is None and runs and runs[-1].taken() >= 1:
        found.append((5, f"{span(runs[-1].taken())} so far"))
    whole, of = None, "left in this part" if isinstance(outer, Among) else "left in all"
    if isinstance(outer, Among) and outer.all:
        whole, of = outer.all.left(), "left in all"
    elif runs:
        # Work that has a name of its own may be one part of several, and does not say when the stage ends.
        own = isinstance(inner, Work) and inner.description in ("", runs[0].stage.rpartition("/")[2])
        whole = runs[0].rest(runs[0].taken(), left if own else None)
    return found if whole is None or whole < 1 else [*found, (2, f"{span(whole)} {of}")]


def _drawn() -> Group:
    """Return the line of progress as it is drawn, with a bar for the outermost work that is counted."""
    text = line(console.width - BAR - 2)
    if not text:
        return Group()
    grid = Table.grid(padding=(0, 1))
    grid.add_row(ProgressBar(total=1.0, completed=_share(), width=BAR), Text(text, no_wrap=True))
    return Group(grid)


def _share() -> float:
    """Return the share of the outermost work that is done."""
    share = 0.0
    for item in reversed(list(_State.shown)):
        if isinstance(item, Work) and (not item.description or item is _State.shown[0]):
            share = item.share()
        elif isinstance(item, Run) and item.stage:
            share = (item.number - 1 + share) / item.total
        elif isinstance(item, Among) and item.all:
            share = (item.all.done + share) / item.all.total
    return share


@contextmanager
def _displayed() -> Iterator[None]:
    """Show the line of progress inside the block: below all others on a terminal, otherwise once a minute."""
    if console.quiet or _State.no_progress:
        yield
    elif on_terminal():
        both = sys.stdout.isatty()  # what goes into a pipe must not be drawn on the terminal
        with Live(get_renderable=_drawn, console=console, transient=True, redirect_stdout=both) as live:
            _State.live = live
            try:
                yield
            finally:
                _State.live = None
    else:
        ended = threading.Event()
        threading.Thread(target=_say_each_minute, args=(ended,), daemon=True).start()
        try:
            yield
        finally:
            ended.set()


def _say_each_minute(ended: threading.Event) -> None:
    while not ended.wait(MINUTE):
        say_progress()


def stage_at_work(otherwise: str = "") -> str:
    """Return the name of the stage that is at work in this process."""
    return next((item.stage for item in _State.shown if isinstance(item, Run) and item.stage), otherwise)


def say_progress() -> None:
    """Print the line of progress, which begins with the stage."""
    name = stage_at_work()
    if text := line(console.width - max(10, len(name) + 1), stage=False):
        console.print(Text(f"{name:<9} {text}" if name else text), soft_wrap=True)


@contextmanager
def showing(item: Shown) -> Iterator[Shown]:
    """Show work, a run or which of several runs it is, inside what is shown already."""
    _State.shown.append(item)
    try:
        with nullcontext() if len(_State.shown) > 1 else _displayed():
            yield item
    except KeyboardInterrupt:
        parts = [part for shown in _State.shown for part in shown.parts()]
        interrupted_at[:] = interrupted_at or [words for rank, words in parts if words and rank in (0, 1, 4)]
        raise
    finally:
        _State.shown[:] = [other for other in _State.shown if other is not item]


@contextmanager
def paused() -> Iterator[None]:
    """Let another draw on the terminal inside the block, such as the bar of a download."""
    live = _State.live
    if live is not None:
        live.stop()
    try:
        yield
    finally:
        if live is not None:
            live.start()


def logged(fields: Sequence[str]) -> None:
    """Print what a step of training logs in one line on a terminal, as many fields as fit.

    Elsewhere the latest step is in the line of progress.
    """
    stage = stage_at_work("train")
    room = console.width - max(10, len(stage) + 1)
    text = fields[0]
    for field in fields[1:]:
        if len(text) + 2 + len(field.rstrip()) > room:
            break
        text += f"  {field}"
    if on_terminal():
        note(stage, text)


def track(
    items: Iterable[Item], description: str, *, total: int, done: int = 0, unit: str = "batch"
) -> Generator[Item]:
    """Yield `items` and show how many of `total` are done, beginning at `done`."""
    with bar(description, total=total, done=done, unit=unit) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def bar(description: str, *, total: int, done: int = 0, unit: str = "batch") -> Iterator[Work]:
    """Show work, from `done` of `total` on; what is yielded advances it by a number, with a short note."""
    with showing(Work(description, unit, total, done)) as work:
        yield work
