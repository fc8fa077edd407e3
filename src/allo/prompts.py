"""What a run starts from: prompts of a benchmark, of a file or of the hub; or ready preference pairs."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict

from allo import tasks
from allo.errors import UserError
from allo.records import Message, Pair, Prompt
from allo.rows import Row, checked, hub_rows, read_rows, stem
from allo.tasks.base import distinct

Asked = TypeVar("Asked", Prompt, Pair)


@dataclass(frozen=True)
class PromptSource:
    """One source of prompts (exactly one of `task`, `file`, `hub`), and which of its prompts to take.

    `folder` holds local rows of the benchmarks. First the prompts are put in `order` (`shortest`: by the
    length of the solution in characters), then `skip` are dropped, then `limit` are kept, so two sources
    that differ in `skip` and `limit` only never share a prompt where their ranges do not. `chat` turns a
    prompt that is text into one user message.
    """

    task: str | None = None
    file: Path | None = None
    hub: str | None = None
    folder: Path | None = None
    split: str = "train"
    limit: int | None = None
    order: Literal["given", "shuffled", "shortest"] = "given"
    skip: int = 0
    seed: int = 0
    chat: bool = False


def read_prompts(source: PromptSource) -> list[Prompt]:
    """The prompts of a source, in its order; at least one. Raises `UserError` for bad input."""
    kept = taken(_ordered(list(_all_prompts(source)), source), skip=source.skip, limit=source.limit)
    return [_as_chat(prompt) for prompt in kept] if source.chat else kept


def taken(prompts: list[Prompt], *, skip: int, limit: int | None) -> list[Prompt]:
    """`limit` prompts (None: all) behind the first `skip`. Raises `UserError` where none are left."""
    kept = prompts[skip : None if limit is None else skip + limit]
    if not kept:
        raise UserError(
            f"no prompts left: {len(prompts)} were found, skip is {skip}, limit is {limit}; "
            "lower `skip` or raise `limit`."
        )
    return kept


def _all_prompts(source: PromptSource) -> Iterator[Prompt]:
    match source.task, source.file, source.hub:
        case str(task), None, None:
            return tasks.load(task, source.split, folder=source.folder)
        case None, (str() | Path()) as file, None:
            path = Path(file)
            return distinct(_from_rows(read_rows(path), name=stem(path)))
        case None, None, str(hub):
            name = f"{hub.split('/')[-1]}-{source.split}"
            return distinct(_from_rows(hub_rows(hub, source.split), name=name))
    given = [name for name in ("task", "file", "hub") if getattr(source, name) is not None]
    raise UserError(
        f"prompts come from exactly one of `task`, `file`, `hub`; given: {', '.join(given) or 'none'}."
    )


def _ordered(prompts: list[Prompt], source: PromptSource) -> list[Prompt]:
    if source.order == "shortest":
        return sorted(prompts, key=lambda prompt: (len(prompt.solution or ""), prompt.id))
    if source.order == "shuffled":
        # By hash, so that a prompt keeps its place among the others when rows are added or moved.
        return sorted(
            prompts, key=lambda prompt: hashlib.sha256(f"{source.seed}:{prompt.id}".encode()).digest()
        )
    return prompts


def _as_chat(asked: Asked) -> Asked:
    if isinstance(asked.prompt, list):
        return asked
    return replace(asked, prompt=[Message(role="user", content=asked.prompt.strip())])


def _said(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


class ChatMessage(BaseModel):
    """One message of a chat in a user's row."""

    model_config = ConfigDict(strict=True)

    role: Literal["system", "user", "assistant"]
    content: str


def _asked(messages: list[ChatMessage]) -> list[ChatMessage]:
    if not messages or messages[-1].role == "assistant" or not messages[-1].content.strip():
        raise ValueError("must be a list of messages that ends with what the user says")
    return messages


class PromptRow(BaseModel):
    """One row of a user's prompts; further columns are let be."""

    model_config = ConfigDict(strict=True)

    prompt: Annotated[str, AfterValidator(_said)] | Annotated[list[ChatMessage], AfterValidator(_asked)]
    answer: str | None = None
    solution: str | None = None
    choices: list[str] | None = None
    id: str | None = None


def messages(chat: list[ChatMessage]) -> list[Message]:
    """The checked messages as plain records."""
    return [Message(role=message.role, content=message.content) for message in chat]


def _from_rows(rows: Iterator[tuple[int, str, Row]], *, name: str) -> Iterator[tuple[str, Prompt]]:
    for number, place, row in rows:
        checked_row = checked(PromptRow, row, place=place)
        text = checked_row.prompt
        yield (
            place,
            Prompt(
                id=checked_row.id or f"{name}-{number}",
                prompt=text if isinstance(text, str) else messages(text),
                answer=checked_row.answer,
                solution=checked_row.solution,
                choices=checked_row.choices,
            ),
        )


class PairRow(BaseModel):
    """One row of a user's pairs, in any of TRL's preference formats; further columns are let be."""

    model_config = ConfigDict(strict=True)

    chosen: str | list[ChatMessage]
    rejected: str | list[ChatMessage]
    prompt: str | list[ChatMessage] | None = None
    prompt_id: str | None = None
    chosen_finished: bool = True
    rejected_finished: bool = True


def read_pairs(path: Path, *, chat: bool = False) -> list[Pair]:
    """Ready preference pairs of a file (see `rows.FILE_TYPES`), in any of TRL's formats.

    With `prompt` or, without, with the prompt as what `chosen` and `rejected` begin with in common; as
    strings or as lists of messages. `chat` turns a prompt that is text into one user message. Raises
    `UserError` naming the line for a row that is no pair.
    """
    path = Path(path)
    pairs = []
    for number, place, row in read_rows(path):
        found = checked(PairRow, row, place=place)
        prompt, chosen, rejected = _split(found, place=place)
        for name, text in (("chosen", chosen), ("rejected", rejected)):
            if not text.strip():
                raise UserError(
                    f"{place}: `{name}` has no completion after the prompt; drop the row or fill it."
                )
        if chosen.strip() == rejected.strip():
            raise UserError(f"{place}: `chosen` equals `rejected`; such a pair teaches nothing, drop it.")
        pairs.append(
            Pair(
                prompt_id=found.prompt_id or f"{stem(path)}-{number}",
                prompt=prompt,
                chosen=chosen,
                rejected=rejected,
                chosen_finished=found.chosen_finished,
                rejected_finished=found.rejected_finished,
            )
        )
    return [_as_chat(pair) for pair in pairs] if chat else pairs


def _split(row: PairRow, *, place: str) -> tuple[str | list[Message], str, str]:
    """Prompt, chosen and rejected completion of a row."""
    match row.chosen, row.rejected, row.prompt:
        case str(chosen), str(rejected), None:
            return _split_texts(chosen, rejected, place=place)
        case str(chosen), str(rejected), str(prompt):
            if not prompt.strip():
                raise UserError(f"{place}: `prompt` is empty; fill it or drop the row.")
            return prompt, chosen, rejected
        case str(chosen), str(rejected), [_, *_] as prompt:
            return messages(prompt), chosen, rejected
        case list(chosen), list(rejected), prompt:
            return _split_chats(chosen, rejected, prompt, place=place)
    raise UserError(
        f"{place}: `chosen` and `rejected` must both be strings or both be lists of messages, and `prompt` not empty."
    )


def _split_texts(chosen: str, rejected: str, *, place: str) -> tuple[str, str, str]:
    """The common beginning is the prompt; a space before the first difference belongs to the completions."""
    shorter = min(len(chosen), len(rejected))
    shared = next((at for at in range(shorter) if chosen[at] != rejected[at]), shorter)
    prompt = chosen[:shared].removesuffix(" ")
    if not prompt.strip():
        raise UserError(
            f"{place}: lacks `prompt`, and `chosen` and `rejected` do not begin with one in common."
        )
    return prompt, chosen[len(prompt) :], rejected[len(prompt) :]


def _split_chats(
    chosen: list[ChatMessage],
    rejected: list[ChatMessage],
    prompt: str | list[ChatMessage] | None,
    *,
    place: str,
) -> tuple[list[Message], str, str]:
    """The last message of each side is its completion; what goes before must be one and the same."""
    if isinstance(prompt, str):  # beside whole conversations, a string repeats their first question
        prompt = [ChatMessage(role="user", content=prompt)] if len(chosen) == 1 else None
    asked = prompt or []
    whole = [side if side[: len(asked)] == asked else asked + side for side in (chosen, rejected)]
    if not all(side and side[-1].role == "assistant" for side in whole):
        raise UserError(f"{place}: `chosen` and `rejected` must end with an assistant's message.")
    if whole[0][:-1] != whole[1][:-1]:
        raise UserError(
            f"{place}: `chosen` and `rejected` differ before their last message; they need one prompt."
        )
    if not whole[0][:-1]:
        raise UserError(
            f"{place}: lacks `prompt`, and `chosen` and `rejected` hold nothing but the completion."
        )
    return messages(whole[0][:-1]), whole[0][-1].content, whole[1][-1].content
