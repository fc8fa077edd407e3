"""Tokens laid out for readers: visible spaces, lines of limited width, and marks on tokens that carry loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

from rich.cells import cell_len, chop_cells
from rich.text import Text

from allo.console import printable

SHOWN_ENDS = 40
"""Tokens shown at each end of a long text."""
_VISIBLE = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"}
# Neighbours differ, so that token borders are visible.
_PROMPT = ("dim", "dim underline")
_STYLES = {
    "": ("default", "underline"),
    "good": ("bold green", "bold cyan"),
    "bad": ("bold red", "bold magenta"),
}


@dataclass(frozen=True)
class Token:
    """One token's text; `counts` says that it carries loss."""

    text: str
    counts: bool = False


def visible(text: str) -> str:
    """Return the text with signs for spaces and line ends, and escapes for what a terminal would not show."""
    return "".join(_VISIBLE.get(letter) or _shown(letter) for letter in text)


def _shown(letter: str) -> str:
    if letter.isprintable() and printable(letter) == letter:
        return letter
    return letter.encode("unicode_escape", errors="surrogatepass").decode("ascii")


def laid_out(
    tokens: Sequence[Token], *, width: int, plain: bool, kind: str = "", ends: int = SHOWN_ENDS
) -> list[Text]:
    """Return lines of at most `width` columns; a text longer than two `ends` loses its middle.

    Tokens that carry loss are in brackets if `plain`, otherwise in the colours of `kind`: "good" or "bad".
    """
    if len(tokens) <= 2 * ends:
        return _lines(tokens, width, plain, kind)
    left_out = Text(f"... {len(tokens) - 2 * ends:,} tokens left out ...", style="italic")
    return [*_lines(tokens[:ends], width, plain, kind), left_out, *_lines(tokens[-ends:], width, plain, kind)]


def _lines(tokens: Sequence[Token], width: int, plain: bool, kind: str) -> list[Text]:
    lines, line = [], Text()
    turns = {True: cycle(_STYLES[kind]), False: cycle(_PROMPT)}
    for token in tokens:
        shown, style = visible(token.text), next(turns[token.counts])
        shown = f"[{shown}]" if plain and token.counts else shown
        for part in [shown] if cell_len(shown) <= width else chop_cells(shown, width):
            if cell_len(line.plain) + cell_len(part) > width:
                lines.append(line)
                line = Text()
            line.append(part, style=style)
        if token.text.endswith("\n"):
            lines.append(line)
            line = Text()
    return [*lines, line] if line.plain else lines
