"""The kinds of rows that people bring, told by their columns."""

from itertools import islice
from pathlib import Path
from typing import Literal

from allo.errors import UserError
from allo.files.rows import TRAIN, Notes, Row, named, shown, source_rows
from allo.tasks.feedback import label_of
from allo.tasks.rated import is_rated
from allo.tasks.row_forms import CHATS, in_trl_form

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


def kind_of_rows(path_or_hub: str | Path, *, split: str = TRAIN, config: str | None = None) -> Kind:
    """Return the kind of the rows in a file, a folder or a data set of the hub (`OWNER/NAME`).

    The first rows decide. All of them must be of one kind; rows with a prompt alone, and rows of no kind, count as that
    of the others, whose reader then names them. Raises `UserError` for rows of several kinds, for rows of no kind,
    naming what each kind needs, and for a source that cannot be read.
    """
    found: dict[Kind, str] = {}
    refused: list[UserError] = []
    notes = Notes()  # of rows that cannot be read at all
    for _, place, row in islice(source_rows(path_or_hub, split=split, config=config, notes=notes), FIRST):
        try:
            found.setdefault(_kind(row, place), place)
        except UserError as error:
            refused.append(error)
    if not found and refused:
        raise refused[0]
    if not found:
        notes.settle()
    kinds = found.keys() - ({"prompts"} if len(found) > 1 else set())
    if len(kinds) > 1:
        rows = ", ".join(f"{found[kind]}: {kind}" for kind in NEEDS if kind in kinds)
        raise UserError(
            f"{path_or_hub}: has rows of several kinds ({rows}); give each kind a file of its own."
        )
    (kind,) = kinds
    return kind


def _kind(row: Row, place: str) -> Kind:
    form = in_trl_form(row, place=place, notes=Notes())
    given = {name: value for name, value in form.items() if value is not None}
    if given.keys() >= {"chosen", "rejected"}:
        return "pairs"
    is_whole = not given.keys() & {"chosen", "rejected"}
    if is_whole and is_rated(given):
        return "rated"
    if is_whole and "label" in given and given.keys() & {"completion", *CHATS}:
        if label_of(given["label"]) is None:
            raise UserError(f"{place}: `label` {shown(given['label'])}: must be true or false.")
        return "feedback"
    if is_whole and "completions" not in given and given.keys() & {"prompt", *CHATS}:
        return "problems" if "answer" in given else "prompts"
    needs = "; ".join(f"{kind}: {columns}" for kind, columns in NEEDS.items())
    empty = {name for name, value in row.items() if value is None}
    found = (f"{named(name)}{' (empty)' if name in empty else ''}" for name in sorted(row))
    columns = ", ".join(found) or "no columns"
    raise UserError(f"{place}: rows of no kind that is read; found {columns}. Needed are, for {needs}.")
