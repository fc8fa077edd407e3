"""TabMWP: word problems about a table, some with options, with worked solutions (arXiv 2209.14610)."""

from collections.abc import Iterator
from pathlib import Path

from allo.errors import UserError
from allo.files.records import Prompt
from allo.tasks import base


def load(split: str, *, folder: Path | None = None) -> Iterator[Prompt]:
    """Yield prompts of a folder's `train` or `test`; the table is text within the question.

    The answer is a number, or an option's text if the problem has options. The set is not on the hub, so a missing
    folder raises `UserError`.
    """
    if folder is None:
        raise UserError(
            "`tabmwp` is read from a folder only: its authors' files are on no hub. Set `data_folder` to one "
            "that holds tabmwp/test.jsonl, rows of `id, question, answer, choices?, solution?` (docs/data.md)."
        )
    return base.load_folder("tabmwp", split, folder=folder)
