"""The kinds of rows that people bring, told by their columns."""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from allo.errors import UserError
from allo.files.rows import Row, named, shown, source_rows

Kind = Literal["pairs", "rated", "feedback", "problems", "prompts"]
NEEDS: dict[Kind, str] = {
    "pairs": "`chosen` and `rejected`, and `prompt` unless both begin with it",
    "rated": "`prompt`, `completions` (a list) and `scores` or `ranks` (a list as long)",
    "feedback": "`prompt`, `completion` and `label` (true or false)",
    "problems": "`prompt` and `answer`",
    "prompts": "`prompt`",
}
"""The columns of each kind, for errors."""
FIRST = 100
"""The rows that are looked at: a column may be absent from the first ones."""
_SIDES = (("chosen", "rejected"), ("preferred_output", "non_preferred_output"))
_CHATS = ("messages", "conversations")
_ASKED = ("prompt", "instruction", *_CHATS)
_LABELS = ("true", "false", "1", "0")  # a cell of a CSV file is text


def kind_of_rows(path_or_hub: str | Path, *, split: str = "train") -> Kind:
    """Return the kind of the rows in a file, a folder or a data set of the hub (`OWNER/NAME`).

    The first rows decide. All of them must be of one kind; of prompts, some may have an answer. Raises `UserError` for
    rows of no kind or of several, naming the row and what each kind needs, and for a source that cannot be read.
    """
    found: dict[Kind, str] = {}
    for _, place, row in _first(path_or_hub, split):
        found.setdefault(_kind(row, place), place)
    kinds = found.keys() - ({"prompts"} if "problems" in found else set())
    if len(kinds) > 1:
        rows = ", ".join(f"{found[kind]}: {kind}" for kind in NEEDS if kind in kinds)
        raise UserError(
            f"{path_or_hub}: has rows of several kinds ({rows}); give each kind a file of its own."
        )
    (kind,) = kinds
    return kind


def _first(path_or_hub: str | Path, split: str) -> Iterator[tuple[int, str, Row]]:
    return islice(source_rows(path_or_hub, split=split), FIRST)


def _kind(row: Row, place: str) -> Kind:
    given = {name: value for name, value in row.items() if value is not None}
    if any(given.keys() >= set(sides) for sides in _SIDES):
        return "pairs"
    half = next((name for sides in _SIDES for name in sides if name in given), None)
    if half is None and _is_rated(given):
        return "rated"
    if half is None and "label" in given and given.keys() & {"completion", *_CHATS}:
        if isinstance(given["label"], bool) or str(given["label"]).strip().lower() in _LABELS:
            return "feedback"
        raise UserError(f"{place}: `label` {shown(given['label'])}: must be true or false.")
    if half is None and "completions" not in given and given.keys() & set(_ASKED):
        return "problems" if "answer" in given else "prompts"
    needs = "; ".join(f"{kind}: {columns}" for kind, columns in NEEDS.items())
    columns = ", ".join(map(named, sorted(given))) or "no columns"
    raise UserError(f"{place}: rows of no kind that is read; found {columns}. Needed are, for {needs}.")


def _is_rated(given: Mapping[str, Any]) -> bool:
    """Return whether a row's completions have scores or ranks, beside them or inside each."""
    completions = given.get("completions")
    if not isinstance(completions, list) or not completions:
        return False
    inside = all(isinstance(each, dict) and "role" not in each for each in completions)
    return inside or bool(given.keys() & {"scores", "ranks", "rank"})
