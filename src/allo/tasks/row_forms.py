"""The forms in which other tools write rows, as TRL's: OpenAI's, ShareGPT's, Alpaca's, and transcripts as Anthropic's."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from allo.errors import UserError
from allo.files.rows import Notes, Row, named, shown

CHATS = ("messages", "conversations")
"""Columns that hold a whole conversation; TRL calls it `messages`."""
_ANSWERS = ("chosen", "rejected", "completion")
_CHAT_COLUMNS = ("prompt", *CHATS, *_ANSWERS)
_PREFERRED = {"preferred_output": "chosen", "non_preferred_output": "rejected"}
_SPEAKERS = {
    "user": ("human", "user"),
    "assistant": ("gpt", "chatgpt", "assistant", "model"),
    "system": ("system",),
    "tool": ("tool", "observation", "function_response"),
}
"""The values of ShareGPT's `from`, by role."""
_ROLES = {name: role for role, names in _SPEAKERS.items() for name in names}
_SHAREGPT = "messages in ShareGPT's form (`from` and `value`)"
_TURN = re.compile(r"\n\n(Human|Assistant):")


def in_trl_form(row: Row, *, place: str, notes: Notes, chat: bool = False) -> Row:
    """Return a row with TRL's columns `prompt`, `chosen`, `rejected`, `completion` and `messages`, and count the mapping.

    Rows in TRL's form stay as they are. With `chat`, transcripts ("Human: ... Assistant: ...") become messages. Raises
    `UserError` if the row can be read in two ways.
    """
    read = {
        name: in_roles(row[name], name, place=place) for name in (*_CHAT_COLUMNS, *_PREFERRED) if name in row
    }
    if any(read[name] is not row[name] for name in read):
        notes.mapped[_SHAREGPT] += 1
    row = row | read
    forms: list[tuple[str, Callable[..., Row | None]]] = [
        ("OpenAI's preference form: `input`, `preferred_output` and `non_preferred_output`", _preferred),
        ("the prompt is `instruction`, and `input` below it", _instructed),
        ("the prompt is the conversation beside the answers", _beside),
    ]
    for words, read in forms:
        if (found := read(row, place=place, notes=notes)) is not None:
            notes.mapped[words] += 1
            row = found
    row |= {name: [row[name]] for name in _ANSWERS if isinstance(row.get(name), dict)}
    return _spoken(row, notes=notes) if chat else row


def conversation_of(row: Row, *, place: str) -> str | None:
    """Return the column that holds a row's whole conversation; None without one."""
    found = [name for name in CHATS if isinstance(row.get(name), list) and row[name]]
    if len(found) > 1:
        raise UserError(f"{place}: has {named(found[0])} and {named(found[1])}; keep one of them.")
    return found[0] if found else None


def in_roles(value: Any, name: str, *, place: str) -> Any:
    """Return messages in ShareGPT's form (`from`, `value`) with `role` and `content`; any other value stays as it is."""
    if isinstance(value, dict):
        return _in_role(value, name, place=place) if _is_sharegpt(value) else value
    if isinstance(value, list) and value and all(map(_is_sharegpt, value)):
        return [_in_role(each, name, place=place) for each in value]
    return value


def _is_sharegpt(message: Any) -> bool:
    return isinstance(message, dict) and message.keys() >= {"from", "value"}


def _in_role(message: Mapping[str, Any], name: str, *, place: str) -> Row:
    if message.keys() & {"role", "content"}:
        raise UserError(
            f"{place}: a message of {named(name)} has `from` and `value` beside `role` or `content`."
        )
    speaker = message["from"]
    if not isinstance(speaker, str) or speaker not in _ROLES:
        raise UserError(
            f"{place}: a message of {named(name)} is from {shown(speaker)}; read are {', '.join(_ROLES)}. Give others as "
            "messages with `role` and `content`, calls of tools as `tool_calls` in them."
        )
    rest = {key: value for key, value in message.items() if key not in ("from", "value")}
    return {"role": _ROLES[speaker], "content": message["value"], **rest}


def _preferred(row: Row, *, place: str, notes: Notes) -> Row | None:
    if not row.keys() & _PREFERRED.keys():
        return None
    asked = row.get("input")
    if not isinstance(asked, dict) or not asked.get("messages"):
        raise UserError(f"{place}: `preferred_output` needs `input` with `messages` beside it.")
    if twice := row.keys() & {"prompt", "messages", *_PREFERRED.values(), "tools"}:
        raise UserError(f"{place}: has `preferred_output` beside {named(min(twice))}; keep one form.")
    notes.ignore(f"input.{name}" for name in asked if name not in ("messages", "tools"))
    found = {_PREFERRED.get(name, name): value for name, value in row.items() if name != "input"}
    return {"prompt": asked["messages"], "tools": asked.get("tools"), **found}


def _instructed(row: Row, *, place: str, notes: Notes) -> Row | None:
    instruction, below = row.get("instruction"), row.get("input")
    if any(row.get(name) for name in ("prompt", *CHATS)):
        return None
    if not isinstance(instruction, str) or not instruction.strip():
        return None
    if below is not None and not isinstance(below, str):
        raise UserError(f"{place}: `input` {shown(below)}: must be the text below `instruction`.")
    rest = {name: value for name, value in row.items() if name not in ("instruction", "input", "prompt")}
    if isinstance(row.get("output"), str) and not any(row.get(name) for name in _ANSWERS):
        rest["completion"] = rest.pop("output")
    return {"prompt": f"{instruction}\n{below}" if below and below.strip() else instruction, **rest}


def _beside(row: Row, *, place: str, notes: Notes) -> Row | None:
    """Return the row with the conversation as its prompt, if each answer beside it is one message, or several are rated."""
    answers = [row[each] for each in _ANSWERS if row.get(each)]
    if row.get("prompt") or not (answers or row.get("completions")) or not all(map(_is_one_message, answers)):
        return None
    if (name := conversation_of(row, place=place)) is None:
        return None
    return {"prompt": row[name], **{key: value for key, value in row.items() if key not in (name, "prompt")}}


def _is_one_message(answer: Any) -> bool:
    return isinstance(answer, dict) or (isinstance(answer, list) and len(answer) == 1)


def _spoken(row: Row, *, notes: Notes) -> Row:
    """Return the row with transcripts as messages. One that ends with "Assistant:" is a prompt."""
    found = {name: _turns(row[name]) for name in ("prompt", *_ANSWERS) if _is_transcript(row.get(name))}
    if not found:
        return row
    notes.mapped["a transcript of `Human:` and `Assistant:`, read as messages"] += 1
    return row | found


def _is_transcript(text: Any) -> bool:
    return isinstance(text, str) and text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def _turns(text: str) -> list[dict[str, str]]:
    _, *parts = _TURN.split("\n\n" + text.strip())
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [
        {"role": roles[who], "content": said.strip()}
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    return turns if turns[-1] != {"role": "assistant", "content": ""} else turns[:-1]
