"""Messages in users' rows, and the columns that change what the chat template renders."""

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, model_validator

from allo.errors import UserError
from allo.files.json_text import parse_json
from allo.files.records import Message, Template
from allo.files.rows import Notes, Row, holds_text, named, shown

MEDIA = {"image", "images", "video", "videos", "audio", "audios"}
"""Refused everywhere: no model trained here sees or hears."""
SYSTEM = ("system", "system_prompt", "system_message")
TEMPLATE = ("tools", "documents", "chat_template_kwargs")
ELSEWHERE = {
    "tool_calls": "put it into the assistant's message",
    "reasoning_content": "put it into the assistant's message",
    "thinking": "put it into the assistant's message or, if it is a switch, into `chat_template_kwargs`",
    "enable_thinking": "put it into `chat_template_kwargs`",
    "tool_choice": "chat templates do not know it; remove it",
    "functions": "give them as `tools`",
}
"""Columns that a template could render, but that are not read as columns."""
_PART_OF_PROMPT = re.compile(
    r"(?:^|_)(?:sys(?:tem)?_(?:prompt|instruction|message|text)s?|tools?|functions?|history|(?P<media>images?|pixels?|videos?|audios?))(?:_|$)"
)
"""Names of columns that hold a part of the prompt, with words before or behind."""
MISNAMED = {"function_call": "tool_calls", "reasoning": "reasoning_content"}
"""Message fields under names that chat templates do not read."""

WEIGHING = {"weight": 1, "loss": True, "train": True, "training": True, "prefix": False}
"""Fields of an answer's message that say whether it is learned, each with the value that means yes."""


def _whole_text(content: Any) -> Any:
    """Join the content's parts if all are text."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str) or _media(part):
            raise ValueError(f"a part of `content` is of type {kind!r}, and only text is read")
        texts.append(part["text"])
    return "".join(texts)


def _objects(value: Any) -> Any:
    """Parse tool-call arguments given as JSON text, as by OpenAI: templates expect objects."""
    if not isinstance(value, list) or not all(isinstance(call, dict) for call in value):
        return value
    return [_with_arguments(call) for call in value]


def _with_arguments(call: dict[str, Any]) -> dict[str, Any]:
    if isinstance(call.get("function"), dict):
        return call | {"function": _with_arguments(call["function"])}
    if not isinstance(call.get("arguments"), str):
        return call
    try:
        arguments = parse_json(call["arguments"], place="`arguments`")
    except UserError as error:
        raise ValueError(str(error).removesuffix(".")) from error
    return call | {"arguments": arguments}


class ChatMessage(BaseModel):
    """One message in a user's row. Other fields that hold text are kept: a template renders them, or they are
    refused."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, BeforeValidator(_whole_text)]
    tool_calls: Annotated[list[dict[str, Any]] | None, BeforeValidator(_objects)] = None
    reasoning_content: str | None = None
    thinking: str | None = None
    name: str | None = None
    tool_call_id: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_only_text(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        given = {name: each for name, each in value.items() if not _absent(each) and _is_read(name, each)}
        if media := _media(given):
            raise ValueError(f"a message has `{media}`, and only text is read: drop the row")
        for name in MISNAMED.keys() & given.keys():
            raise ValueError(
                f"a message has `{name}`, which chat templates do not read: rename it to `{MISNAMED[name]}`"
            )
        if "from" in given and "value" in given and "role" not in given:
            raise ValueError(
                "messages have `from` and `value`: rename them to `role` (user, assistant) and `content`"
            )
        without = value.get("content") in ("", []) or "tool_calls" in given
        return {"content": ""} | given if without else given

    @property
    def record(self) -> Message:
        """Return the message with only the fields that are present."""
        given = self.model_dump()
        return cast(
            Message, {name: given[name] for name in given if name == "content" or not _absent(given[name])}
        )

    @property
    def is_more_than_text(self) -> bool:
        return bool(self.tool_calls or self.reasoning_content or self.thinking or self.model_extra)


KNOWN = frozenset(ChatMessage.model_fields)


def _is_read(field: str, value: Any) -> bool:
    named = field in KNOWN | MISNAMED.keys() | {"from", "value"} or field.lower() in MEDIA
    return named or holds_text(value)


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | dict) and not value)


def _media(fields: dict[str, Any]) -> str | None:
    return next((name for name in fields if name.lower() in MEDIA and not _absent(fields[name])), None)


def _asked(chat: list[ChatMessage]) -> list[ChatMessage]:
    last = chat[-1] if chat else None
    if last is None or last.role == "assistant" or not last.content.strip():
        raise ValueError("must be a list of messages that ends with what the user says")
    return chat


def _said(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


Asked = Annotated[str, AfterValidator(_said)] | Annotated[list[ChatMessage], AfterValidator(_asked)]


def messages(chat: Iterable[ChatMessage]) -> list[Message]:
    """Return the checked messages as plain records."""
    return [message.record for message in chat]


def in_chat(prompt: str | list[Message]) -> list[Message]:
    """Return a text prompt as one user message; messages stay unchanged."""
    return prompt if isinstance(prompt, list) else [Message(role="user", content=prompt.strip())]


def asked(
    prompt: str | list[Message], row: Row, *, chat: bool, place: str
) -> tuple[str | list[Message], Template | None]:
    """Return a row's prompt, including its `system` column, and its template settings.

    Args:
        prompt: the row's prompt.
        row: all columns.
        chat: turn a text prompt into one user message.
        place: the row's place, for errors.

    Raises:
        UserError: a column would change the prompt and cannot be honoured.
    """
    given = {name: value for name, value in row.items() if not _absent(value)}
    if media := _media(given):
        raise UserError(f"{place}: has `{media}`, and only text is trained on; drop the row or the column.")
    for name in given:
        if name.lower() != name and name.lower() in {*SYSTEM, *TEMPLATE, *ELSEWHERE}:
            raise UserError(
                f"{place}: `{name}` is no column that is read; rename it to `{name.lower()}`, or remove it."
            )
    for name in ELSEWHERE.keys() & given.keys():
        raise UserError(f"{place}: `{name}` is no column that is read beside messages; {ELSEWHERE[name]}.")
    asked_for = prompt if isinstance(prompt, str) else [message["content"].strip() for message in prompt]
    for name in [name for name in given if name not in (*SYSTEM, *TEMPLATE)]:
        part = _PART_OF_PROMPT.search(re.sub(r"(?<=[a-z])(?=[A-Z])|[\W_]+", "_", name).lower())
        seen = str | list | dict | bytes if part and part["media"] else list | dict
        is_known = isinstance(given[name], str) and given[name].strip() in asked_for
        if part and not is_known and (isinstance(given[name], seen) or holds_text(given[name])):
            raise UserError(
                f"{place}: {named(name)} looks like a part of the prompt, and is no column that is read: put it into the messages of "
                f"`prompt` or under one of {', '.join(f'`{each}`' for each in (SYSTEM[0], *TEMPLATE))}, or remove it."
            )
    changing = [name for name in (*SYSTEM, *TEMPLATE) if name in given]
    if isinstance(prompt, str) and not chat:
        if changing:
            raise UserError(
                f"{place}: `{changing[0]}` needs a chat template, and the prompt is plain text; set `chat: true`, give the "
                "prompt as messages, or remove the column."
            )
        return prompt, None
    settings = {name: _setting(name, given[name], place=place) for name in TEMPLATE if name in given}
    system = _system([(name, given[name]) for name in SYSTEM if name in given], place=place)
    return _with_system(system, in_chat(prompt), place=place), cast(Template, settings) if settings else None


def _system(columns: Sequence[tuple[str, Any]], *, place: str) -> str | None:
    if not columns:
        return None
    if len(columns) > 1:
        raise UserError(f"{place}: has `{columns[0][0]}` and `{columns[1][0]}`; keep one of them.")
    ((name, text),) = columns
    if not isinstance(text, str):
        raise UserError(f"{place}: `{name}` {shown(text)}: must be the text of a system message.")
    return text


def _with_system(system: str | None, chat: list[Message], *, place: str) -> list[Message]:
    if system is None or not system.strip():
        return chat
    if chat[0]["role"] not in ("system", "developer"):
        return [Message(role="system", content=system), *chat]
    if chat[0]["content"].strip() != system.strip():
        raise UserError(f"{place}: `system` differs from the system message of the prompt; keep one of them.")
    return chat


def _setting(name: str, value: Any, *, place: str) -> Any:
    """Return a column of template settings, parsed if it is JSON text."""
    if isinstance(value, str):
        value = parse_json(value, place=f"{place}: `{name}`")
    if name == "chat_template_kwargs":
        good = isinstance(value, dict)
    else:
        good = isinstance(value, list)
        value = (
            [
                parse_json(each, place=f"{place}: `{name}`") if isinstance(each, str) else each
                for each in value
            ]
            if good
            else value
        )
        good = good and all(isinstance(each, dict) for each in value)
    if not good:
        expected = "an object" if name == "chat_template_kwargs" else "a list of objects"
        raise UserError(f"{place}: `{name}` {shown(value)}: must be {expected}.")
    return value


def note_ignored(notes: Notes, row: Row, *, read: Iterable[str]) -> None:
    """Note a row's columns, and its messages' fields, that are not read."""
    known = {*read, *SYSTEM, *TEMPLATE, *MEDIA, *ELSEWHERE}
    notes.ignore(name for name, value in row.items() if name not in known and value is not None)
    for name in read:
        for message in row[name] if isinstance(row.get(name), list) else ():
            if isinstance(message, dict):
                notes.ignore(f"{name}[].{field}" for field in message if not _is_read(field, message[field]))


def refuse_weighing(row: Row, *, place: str) -> None:
    """Refuse answers marked as not learned."""
    for side in ("chosen", "rejected", "completion", "messages"):
        chat = row.get(side)
        last = chat[-1] if isinstance(chat, list) and chat else None
        given = last if isinstance(last, dict) else {}
        for field, usual in WEIGHING.items():
            if given.get(field) not in (None, usual):
                raise UserError(
                    f"{place}: the last message of `{side}` has `{field}` {shown(given[field])}, and an answer is trained on as "
                    "a whole: remove the field, or drop the row."
                )


def refuse_feedback(row: Row, *, place: str) -> None:
    """Refuse labelled single completions, of which another reader would lose half, and answers marked as not learned."""
    refuse_weighing(row, place=place)
    if row.keys() & {"completion", "messages", "conversations"} and "label" in row and "chosen" not in row:
        raise UserError(
            f"{place}: `completion` and `label` are labelled feedback (as for KTO), whose labels would be lost here; name "
            "the file under `data.feedback` in a recipe, or give the rows to `FeedbackTrainer`."
        )
