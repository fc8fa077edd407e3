"""One row of a rewriter's training data."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from allo.files.records import Message
from allo.files.rows import checked, read_rows
from allo.tasks.chats import ChatMessage, messages

Text = Annotated[str, Field(pattern=r"\S")]


class RewriteRow(BaseModel):
    """A problem, a right solution, a completion, and its rewrite with few changes.

    `source` is the rewrite's origin, or `identity` for a right completion left unchanged. `template` holds the
    prompt's chat template settings.
    """

    model_config = ConfigDict(strict=True)

    prompt: Text | list[ChatMessage]
    right: Text
    completion: Text
    rewrite: Text
    id: str = ""
    source: str = ""
    template: dict[str, Any] | None = None

    @property
    def asked(self) -> str | list[Message]:
        """Return the problem as a record's prompt."""
        return self.prompt if isinstance(self.prompt, str) else messages(self.prompt)


def read_rewrites(path: Path) -> list[RewriteRow]:
    """Return the rows of a file (see `rows.FILE_TYPES`). Raises `UserError` naming a bad row's line."""
    return [checked(RewriteRow, row, place=place) for _, place, row in read_rows(path)]
