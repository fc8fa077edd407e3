"""One row of a rewriter's training data."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from allo.files.records import Message
from allo.files.rows import checked, read_rows
from allo.tasks.chats import ChatMessage, messages

Text = Annotated[str, Field(pattern=r"\S")]


class RewriteRow(BaseModel):
    """A problem, a right solution of it, a completion, and the completion rewritten with few changes.

    `source`: where the rewrite comes from; `identity` where the completion is right as it is. `template`: the prompt's
    settings of the chat template.
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
        """The problem as a record's prompt."""
        return self.prompt if isinstance(self.prompt, str) else messages(self.prompt)


def read_rewrites(path: Path) -> list[RewriteRow]:
    """The rows of a file (see `rows.FILE_TYPES`). Raises `UserError` naming the line of a bad one."""
    return [checked(RewriteRow, row, place=place) for _, place, row in read_rows(path)]
