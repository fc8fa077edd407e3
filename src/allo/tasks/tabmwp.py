"""TabMWP: word problems about a table, some with options, with worked solutions (arXiv 2209.14610)."""

from collections.abc import Iterator
from pathlib import Path

from allo.errors import UserError
from allo.files.records import Prompt
from allo.tasks import base


def load(split: str, *, folder: Path | None = None) -> Iterator[Prompt]:
    """Prompts of a folder's `train` or `test`; the table is text within the question.

    The answer is a number, or the text of an option where the problem has options. Its authors publish the
    set outside the hub, so without a folder there is nothing to read: raises `UserError`.
    """
    if folder is None:
        raise UserError(
            "`tabmwp` is read from a folder only: its authors' files are on no hub. Set `data_folder` to one "
            "that holds tabmwp/test.jsonl, rows of `id, question, answer, choices?, solution?` (docs/data.md)."
        )
    return base.load_folder("tabmwp", split, folder=folder)
