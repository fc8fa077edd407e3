"""A row's prompt and answers, separated; rows in TRL's forms may hold whole conversations."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from allo.errors import UserError
from allo.files.records import Message
from allo.files.rows import Notes, Row, holds_text, named
from allo.tasks.beginnings import shared_beginning
from allo.tasks.chats import SYSTEM, TEMPLATE, ChatMessage, messages

Side = str | ChatMessage
_ROLE = re.compile(
    r"(?:^|\n)\W*(?:human|user|question|q|instruction|input|prompt|system)\W*:|<\|\w+\|>|\[INST\]|<start_of_turn>|###",
    re.IGNORECASE,
)
SHORT = 4
"""Most words of a prompt that an answer may begin with by itself, such as "Hello"."""


@dataclass(frozen=True)
class Answered:
    """One row's prompt with its answers (`chosen` and `rejected`, or `completion`)."""

    place: str
    prompt: str | list[Message]
    sides: dict[str, Side]


def text_of(side: Side) -> str:
    return side if isinstance(side, str) else side.content


def apart(
    prompt: str | list[ChatMessage] | None,
    sides: dict[str, str | list[ChatMessage]],
    row: Row,
    *,
    place: str,
    notes: Notes,
) -> Answered:
    """Return the prompt and the answers of a row.

    Args:
        prompt: the row's prompt; None to take the answers' shared beginning.
        sides: the answers by column, all texts or all lists of messages.
        row: all columns, searched for a prompt under another name.
        place: the row's place, for errors.
        notes: counts rows whose prompt is inferred.
    """
    texts = {name: side for name, side in sides.items() if isinstance(side, str)}
    chats = {name: side for name, side in sides.items() if not isinstance(side, str)}
    names = " and ".join(f"`{name}`" for name in sides)
    if texts and chats:
        raise UserError(f"{place}: {names} must both be strings or both be lists of messages.")
    if (isinstance(prompt, str) and not prompt.strip()) or prompt == []:
        raise UserError(f"{place}: `prompt` is empty; fill it or drop the row.")
    if chats:
        return _chats_apart(prompt, chats, row, place=place, notes=notes)
    if prompt is not None:
        return Answered(place, _checked(prompt, place=place), dict(texts))
    return _texts_apart(texts, row, place=place, notes=notes)


def _texts_apart(texts: dict[str, str], row: Row, *, place: str, notes: Notes) -> Answered:
    names = " and ".join(f"`{name}`" for name in texts)
    shared = shared_beginning(*texts.values()) if len(texts) > 1 else ""
    _refuse_other_names(row, texts, shared, place=place)
    if not shared.strip():
        raise UserError(f"{place}: lacks `prompt`, and {names} do not begin with one in common.")
    notes.mapped["prompt inferred from what both answers begin with"] += 1
    return Answered(place, shared, {name: text[len(shared) :] for name, text in texts.items()})


def _refuse_other_names(row: Row, sides: Iterable[str], shared: str, *, place: str) -> None:
    """Refuse to guess a prompt if a column's text could be one, unless the `shared` text holds it."""
    beside = tuple(f"{name}_" for name in sides)
    for name, value in row.items():
        read = name in (*sides, *SYSTEM, *TEMPLATE, "id") or name.startswith(beside) or name.endswith("_id")
        repeated = isinstance(value, str) and value.strip() in shared
        is_chat = isinstance(value, list) and any(isinstance(each, dict) for each in value)
        if not read and not repeated and (is_chat or holds_text(value)):
            raise UserError(
                f"{place}: lacks `prompt`, which is not guessed beside {named(name)}; rename {named(name)} to `prompt`, or remove it if "
                "the prompt is what both answers begin with."
            )


def _chats_apart(
    prompt: str | list[ChatMessage] | None,
    chats: dict[str, list[ChatMessage]],
    row: Row,
    *,
    place: str,
    notes: Notes,
) -> Answered:
    """Take the last message of each side as its answer; the messages before it must be the same."""
    names = " and ".join(f"`{name}`" for name in chats)
    if isinstance(prompt, str):
        alone = all(len(chat) == 1 for chat in chats.values())
        asked = [{one.content.strip() for one in chat if one.role != "assistant"} for chat in chats.values()]
        if not alone and not all(prompt.strip() in texts for texts in asked):
            raise UserError(
                f"{place}: {names} hold conversations in which nobody says the `prompt`; remove `prompt`, or leave only the "
                "assistant's message."
            )
        prompt = [ChatMessage(role="user", content=prompt.strip())] if alone else None
    whole = [_after(prompt or [], chat, name, place=place) for name, chat in chats.items()]
    if not all(chat and chat[-1].role == "assistant" for chat in whole):
        raise UserError(f"{place}: {names} must end with an assistant's message.")
    before = whole[0][:-1]
    if any(chat[:-1] != before for chat in whole):
        raise UserError(
            f"{place}: {names} differ before their last message; one message is trained on, after one prompt."
        )
    if not before:
        if len(whole[0]) == 1:
            _refuse_other_names(row, chats, "", place=place)
        raise UserError(f"{place}: lacks `prompt`, and {names} hold nothing but the completion.")
    if prompt is not None and len(before) > len(prompt):
        notes.mapped["messages that all answers begin with belong to the prompt"] += 1
    sides: dict[str, Side] = {name: chat[-1] for name, chat in zip(chats, whole, strict=True)}
    return Answered(place, _checked(before, place=place), sides)


def _after(asked: list[ChatMessage], chat: list[ChatMessage], name: str, *, place: str) -> list[ChatMessage]:
    """Return the conversation of a prompt and a side, which may repeat the prompt or its end."""
    for number in range(min(len(asked), len(chat)), 0, -1):
        if asked[-number:] == chat[:number]:
            return asked + chat[number:]
    if asked and chat and chat[0].role not in ("assistant", "tool"):
        raise UserError(
            f"{place}: `{name}` begins with another {chat[0].role} message than `prompt`; give the prompt once."
        )
    return asked + chat


def _checked(prompt: str | list[ChatMessage], *, place: str) -> str | list[Message]:
    if isinstance(prompt, str):
        return prompt
    if prompt[-1].role == "assistant":
        raise UserError(
            f"{place}: the assistant's answer follows another message of the assistant; end the prompt with what the user "
            "or a tool says."
        )
    return messages(prompt)


def without_repeats(rows: Sequence[Answered], notes: Notes) -> list[Answered]:
    """Return rows whose answers no longer repeat their prompt.

    An answer may begin with a short prompt, such as a greeting, by itself. Such a prompt counts as repeated only if
    most rows repeat theirs. Raises `UserError` for an answer that holds the prompt inside a plain-text conversation.
    """
    cut = [_cut(row) for row in rows]
    most = sum(each is not None for each in cut) * 2 > len(rows)
    kept = []
    for row, each in zip(rows, cut, strict=True):
        if each is None:
            _refuse_transcript(row)
            kept.append(row)
        elif most or len(_last(row.prompt).split()) > SHORT:
            notes.mapped["prompt repeated in the answers, and read once"] += 1
            kept.append(each)
        else:
            notes.mapped["answers begin with the words of their short prompt, and are taken as written"] += 1
            kept.append(row)
    return kept


def _last(prompt: str | list[Message]) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def _cut(row: Answered) -> Answered | None:
    """Return the row with its prompt removed from the answers; None unless all answers begin with it."""
    texts = {name: side for name, side in row.sides.items() if isinstance(side, str)}
    asked = _last(row.prompt)
    if len(texts) < len(row.sides) or not asked.strip():
        return None
    if isinstance(row.prompt, str) and all(text.startswith(asked) for text in texts.values()):
        return _unless_in_a_word(row, asked, texts)
    bare = {name: text.lstrip() for name, text in texts.items()}
    if not all(text.startswith(asked.strip()) for text in bare.values()):
        return None
    if isinstance(row.prompt, str):
        return _unless_in_a_word(replace(row, prompt=asked.strip()), asked.strip(), bare)
    found = _unless_in_a_word(row, asked.strip(), bare)
    return found and replace(
        found, sides={name: text_of(side).lstrip() for name, side in found.sides.items()}
    )


def _unless_in_a_word(row: Answered, beginning: str, texts: dict[str, str]) -> Answered | None:
    rest = {name: text[len(beginning) :] for name, text in texts.items()}
    if beginning[-1].isalnum() and any(text[:1].isalnum() for text in rest.values()):
        return None
    return replace(row, sides=dict(rest))


def _refuse_transcript(row: Answered) -> None:
    asked = _last(row.prompt).strip()
    for side in row.sides.values():
        if not isinstance(side, str):
            return
        before, found, _ = side.partition(asked)
        if not found or not _ROLE.search(before):
            return
    raise UserError(
        f"{row.place}: the answers repeat the prompt inside a conversation; remove `prompt`, or leave only the answers."
    )
