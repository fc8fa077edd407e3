"""The prompts that a run starts from: a benchmark's, a file's or the hub's."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from allo import tasks
from allo.errors import UserError
from allo.files.records import Prompt
from allo.files.rows import Notes, Reading, Row, checked, hub_rows, named, source_name, source_rows
from allo.recipe.own_code import load_function, own_file
from allo.recipe.own_process import ARGUMENTS
from allo.tasks.base import distinct
from allo.tasks.chats import Asked, ChatMessage, asked, in_chat, messages, note_ignored, refuse_feedback
from allo.tasks.gold import Given, right_answers
from allo.tasks.row_forms import conversation_of, in_trl_form


@dataclass(frozen=True)
class PromptSource:
    """One source of prompts (exactly one of `task`, `file`, `hub`), and the selection to take.

    `folder` holds local rows of the benchmarks. Prompts are put in `order` (`shortest`: by the solution's length in
    characters); then `skip` are dropped and `limit` kept. So two sources that differ only in disjoint `skip` and
    `limit` ranges share no prompt. `chat` turns a text prompt into one user message. `for_function`: a function of the
    user's judges, so whole rows are kept, and `answer`, `choices` and `solution` may hold anything.
    `skip_bad` leaves out rows that cannot be used.
    """

    task: str | None = None
    file: Path | None = None
    hub: str | None = None
    folder: Path | None = None
    split: str = "train"
    config: str | None = None
    limit: int | None = None
    order: Literal["given", "shuffled", "shortest"] = "given"
    skip: int = 0
    seed: int = 0
    chat: bool = False
    for_function: bool = False
    skip_bad: bool | None = False


def read_prompts(source: PromptSource) -> list[Prompt]:
    """Return the prompts of a source, in its order; see `prompts_and_reading`."""
    return prompts_and_reading(source)[0]


def prompts_and_reading(source: PromptSource) -> tuple[list[Prompt], Reading]:
    """Return a source's prompts (at least one), in order, and the fate of its rows. Raises `UserError` for bad input."""
    notes = Notes(skip_bad=bool(source.skip_bad))
    found = _all_prompts(source, notes)
    if source.task is not None and source.order == "given" and source.limit is not None:
        found = islice(found, source.skip + source.limit)  # a benchmark's further rows need not be read
    kept = taken(_ordered(list(found), source), skip=source.skip, limit=source.limit)
    if source.chat:
        kept = [replace(prompt, prompt=in_chat(prompt.prompt)) for prompt in kept]
    return kept, notes.reading(duplicates=repeated(kept))


def repeated(prompts: list[Prompt]) -> int:
    """Count the prompts that repeat an earlier one under another id."""
    return len(prompts) - len({repr((prompt.prompt, prompt.template)) for prompt in prompts})


def taken(prompts: list[Prompt], *, skip: int, limit: int | None) -> list[Prompt]:
    """Return `limit` prompts (None: all) after the first `skip`. Raises `UserError` if none are left."""
    kept = prompts[skip : None if limit is None else skip + limit]
    if not kept:
        raise UserError(
            f"no prompts left: {len(prompts)} were found, skip is {skip}, limit is {limit}; "
            "lower `skip` or raise `limit`."
        )
    return kept


def _all_prompts(source: PromptSource, notes: Notes) -> Iterator[Prompt]:
    match source.task, source.file, source.hub:
        case str(task), None, None:
            if own_file(task) is None:
                return notes.counted(tasks.load(task, source.split, folder=source.folder))
            name = f"{Path(task).stem}-{source.split}"
            return distinct(_from_rows(_own_rows(task, source), notes, source, name=name))
        case None, (str() | Path()) as file, None:
            rows = source_rows(file, split=source.split, config=source.config, notes=notes)
            name = source_name(file, split=source.split)
            return distinct(_from_rows(rows, notes, source, name=name))
        case None, None, str(hub):
            name = f"{hub.split('/')[-1]}-{source.split}"
            rows = hub_rows(hub, source.split, config=source.config)
            return distinct(_from_rows(rows, notes, source, name=name))
    given = [name for name in ("task", "file", "hub") if getattr(source, name) is not None]
    raise UserError(
        f"prompts come from exactly one of `task`, `file`, `hub`; given: {', '.join(given) or 'none'}."
    )


def _own_rows(task: str, source: PromptSource) -> Iterator[tuple[int, str, Row]]:
    """Yield `(number, place, row)` of a task of the user's own: a function that returns the rows of a split."""
    rows = load_function(task, key="task")(source.split, folder=source.folder)
    if not isinstance(rows, Iterable) or isinstance(rows, str | dict):
        raise UserError(f"task: {task} must return a split's rows; it returned {type(rows).__name__}.")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(
                f"task: {task}: row {number} is a {type(row).__name__}; give a dict with `prompt`, and `answer`, "
                "`solution`, `choices` and `id` if there are any."
            )
        yield number, f"{task}, row {number}", row


def _ordered(prompts: list[Prompt], source: PromptSource) -> list[Prompt]:
    if source.order == "shortest":
        return sorted(prompts, key=lambda prompt: (len(prompt.solution or ""), prompt.id))
    if source.order == "shuffled":
        # Sort by hash, so that added or moved rows leave the others' order unchanged.
        return sorted(
            prompts, key=lambda prompt: hashlib.sha256(f"{source.seed}:{prompt.id}".encode()).digest()
        )
    return prompts


OPTIONS = {"options", "option", "choice", "answer_choices", "answer_options", "candidates"}
"""Other names for `choices`; if they were ignored, a letter in `answer` would be compared as a text."""


def _refuse_misnamed_choices(row: Row, *, place: str) -> None:
    if row.get("answer") is None or row.get("choices") is not None:
        return
    for name in row:
        if name.lower() in OPTIONS and isinstance(row[name], list | dict) and row[name]:
            raise UserError(
                f"{place}: has {named(name)} beside `answer`; rename it to `choices` (a list of the options' texts), or remove it."
            )


class PromptRow(BaseModel):
    """One row of a user's prompts."""

    model_config = ConfigDict(strict=True)

    prompt: Asked
    answer: str | int | None = None
    solution: str | None = None
    choices: list[str] | None = None
    id: str | None = None


NOT_COLUMNS = ("prompt", "completion", "completion_ids")
"""Columns that TRL does not pass to a reward function, since arguments hold them."""


def _columns(row: Row, *, place: str) -> Row:
    """Return the columns that functions are passed. Raises `UserError` for the name of another argument."""
    for name in ARGUMENTS:
        if name in row and name not in NOT_COLUMNS:
            raise UserError(
                f"{place}: `{name}` is the name of an argument of judge.function; rename the column."
            )
    return {name: value for name, value in row.items() if name not in NOT_COLUMNS}


def _as_texts(row: Row) -> Row:
    """Return the row with `answer`, `solution` and `id` as texts or absent: only the function knows their meaning."""
    given = {name: row.get(name) for name in ("answer", "solution", "id")}
    texts = {name: str(value) for name, value in given.items() if type(value) in (str, int, float)}
    return {name: value for name, value in row.items() if name not in (*given, "choices")} | texts


def _with_prompt(row: Row, *, place: str, notes: Notes, chat: bool) -> Row:
    """Return the row in TRL's form with a prompt; the last answer of a conversation, or Alpaca's `output`, is its solution."""
    found = in_trl_form(row, place=place, notes=notes, chat=chat)
    refuse_feedback(found, place=place)
    is_shown = "instruction" in row and "completion" in found
    if not found.get("prompt") and (name := conversation_of(found, place=place)) is not None:
        *before, last = found.pop(name)
        if not isinstance(last, dict) or last.get("role") != "assistant":
            return {**found, "prompt": [*before, last]}
        message = checked(ChatMessage, last, place=f"{place}: the last message of {named(name)}")
        if message.is_more_than_text:
            raise UserError(
                f"{place}: the last answer of {named(name)} has thoughts or calls, and a solution is a text; remove it."
            )
        found, is_shown = {**found, "prompt": before, "completion": message.content}, True
    if is_shown and found.get("solution") is None:
        notes.mapped["the last answer is the `solution`, and all before it the prompt"] += 1
        found["solution"] = found.pop("completion")
    return found


def _from_rows(
    rows: Iterator[tuple[int, str, Row]], notes: Notes, source: PromptSource, *, name: str
) -> Iterator[tuple[str, Prompt]]:
    found = []
    for number, place, row in rows:
        notes.rows += 1
        with notes.bad_rows():
            columns = _columns(row, place=place) if source.for_function else None
            row = _with_prompt(row, place=place, notes=notes, chat=source.chat)
            if not source.for_function:
                _refuse_misnamed_choices(row, place=place)
            note_ignored(
                notes, row if columns is None else {"prompt": row.get("prompt")}, read=PromptRow.model_fields
            )
            one = checked(PromptRow, row if columns is None else _as_texts(row), place=place)
            text = one.prompt if isinstance(one.prompt, str) else messages(one.prompt)
            found.append((number, place, one, columns, asked(text, row, chat=source.chat, place=place)))
    notes.settle()
    given = [Given(place, one.answer, one.choices) for _, place, one, _, _ in found]
    as_given = [None if one.answer is None else str(one.answer) for one in given]
    answers = as_given if source.for_function else right_answers(given, notes)
    first: dict[str, str | None] = {}
    for answer, (number, place, one, columns, (prompt, template)) in zip(answers, found, strict=True):
        if first.setdefault(repr((prompt, template)), answer) != answer:
            notes.mapped["an earlier row asks the same and has another `answer`"] += 1
        yield (
            place,
            Prompt(
                id=one.id or f"{name}-{number}",
                prompt=prompt,
                answer=answer,
                solution=one.solution,
                choices=one.choices,
                template=template,
                columns=columns,
                text=one.prompt if isinstance(one.prompt, str) and isinstance(prompt, list) else None,
            ),
        )
