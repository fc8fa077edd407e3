"""Ready preference pairs and completions, from users' files and from rows in memory."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from allo.errors import UserError
from allo.files.json_text import half_a_pair
from allo.files.records import Message, Pair
from allo.files.row_files import without_nulls
from allo.files.rows import TRAIN, Notes, Reading, Row, checked, source_name, source_rows
from allo.recipe.judge import Pairing
from allo.tasks.chats import TEMPLATE, ChatMessage, asked, note_ignored, refuse_feedback, refuse_weighing
from allo.tasks.pairing import answer_row
from allo.tasks.rated import RatedPairs, is_rated
from allo.tasks.row_answers import Answered, Side, apart, text_of, without_repeats
from allo.tasks.row_forms import conversation_of, in_trl_form

Placed = Iterable[tuple[int, str, Row]]
Model = TypeVar("Model", bound=BaseModel)
Answer = TypeVar("Answer", bound="AnswerRow")
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Weight = Annotated[float, Field(allow_inf_nan=False)]


class PairRow(BaseModel):
    """One row of a user's pairs, in any of TRL's preference formats, or a line of a run's `03-pairs.jsonl`."""

    model_config = ConfigDict(strict=True)

    chosen: str | list[ChatMessage]
    rejected: str | list[ChatMessage]
    prompt: str | list[ChatMessage] | None = None
    prompt_id: str | None = None
    chosen_finished: bool = True
    rejected_finished: bool = True
    chosen_message: ChatMessage | None = None
    rejected_message: ChatMessage | None = None
    chosen_token_ids: list[TokenId] | None = None
    rejected_token_ids: list[TokenId] | None = None


class AnswerRow(BaseModel):
    """One completion with its prompt, or a conversation that ends with it."""

    model_config = ConfigDict(strict=True)

    completion: str | list[ChatMessage]
    prompt: str | list[ChatMessage] | None = None
    finished: bool = True
    message: ChatMessage | None = None
    completion_ids: list[TokenId] | None = None


class CompletionRow(AnswerRow):
    """A completion whose tokens may have weights."""

    token_weights: list[Weight] | None = None


def read_pairs(path: Path, *, chat: bool = False) -> list[Pair]:
    """Return the pairs of a file; see `pairs_and_reading`."""
    return pairs_and_reading(path, chat=chat)[0]


def pairs_and_reading(
    source: str | Path,
    *,
    split: str = TRAIN,
    config: str | None = None,
    chat: bool = False,
    pairing: Pairing | None = None,
    skip_bad: bool = False,
) -> tuple[list[Pair], Reading]:
    """Return the ready preference pairs of a file, a folder or the hub (see `rows.source_rows`), and the fate of its rows.

    The prompt is `prompt`, or the shared beginning of `chosen` and `rejected`; all are strings or lists of messages.
    `chat` turns a text prompt into one user message. `pairing` says how rated completions are paired. Raises `UserError`
    naming the lines of rows that are no pairs, unless `skip_bad` leaves them out.
    """
    notes = Notes(skip_bad=skip_bad)
    rows = source_rows(source, split=split, config=config, notes=notes)
    name = source_name(source, split=split)
    return _pairs(rows, notes, name=name, chat=chat, pairing=pairing or Pairing())


def pairs_of_rows(
    rows: Iterable[Mapping[str, Any]],
    *,
    name: str = "rows",
    chat: bool = False,
    pairing: Pairing | None = None,
) -> tuple[list[Pair], Reading]:
    """Return the pairs of rows in memory (a list, a `datasets.Dataset`), read like those of a file.

    Errors begin with `NAME, row NUMBER`, counted from 0.
    """
    notes = Notes()
    return _pairs(placed(rows, notes, name=name), notes, name=name, chat=chat, pairing=pairing or Pairing())


def completions_of_rows(
    rows: Iterable[Mapping[str, Any]], *, name: str = "rows", chat: bool = False
) -> tuple[list[dict[str, Any]], Reading]:
    """Return rows in the form that `models.rows` tokenizes, each with its `id`, read like one side of a pair."""
    notes = Notes()
    found = answers_of(placed(rows, notes, name=name), CompletionRow, notes, chat=chat)
    return [
        fields | {"id": f"{name}-{number}", "token_weights": one.token_weights}
        for number, one, fields in found
    ], notes.reading()


def answers_of(
    rows: Placed, model: type[Answer], notes: Notes, *, chat: bool
) -> list[tuple[int, Answer, dict[str, Any]]]:
    """Return each row's number, its columns, and its prompt and completion in the form that `models.rows` tokenizes."""
    found, kept = [], []
    for number, place, row in rows:
        notes.rows += 1
        with notes.bad_rows():
            row = in_trl_form(row, place=place, notes=notes, chat=chat)
            chat_column = None if "completion" in row else conversation_of(row, place=place)
            if chat_column is not None:
                row = {"completion": row.pop(chat_column), **row}
            one = _read(model, row, place=place, notes=notes)
            found.append(apart(one.prompt, {"completion": one.completion}, row, place=place, notes=notes))
            kept.append((number, row, one))
    completions = []
    for answered, (number, row, one) in zip(without_repeats(found, notes), kept, strict=True):
        with notes.bad_rows():
            side = _filled("completion", answered)
            prompt, template = asked(answered.prompt, row, chat=chat, place=answered.place)
            fields = {
                "prompt": prompt,
                "completion": text_of(side),
                "finished": one.finished,
                "template": template,
                "message": _message(one.message, side, place=answered.place),
                "completion_ids": one.completion_ids,
            }
            completions.append((number, one, fields))
    notes.settle()
    return completions


def wrong_of_rows(
    rows: Iterable[Mapping[str, Any]], *, name: str = "rows", chat: bool = False
) -> tuple[list[dict[str, Any]], Reading]:
    """Return rows as `completions_of_rows` does; of pairs the rejected sides."""
    rows = list(rows) if isinstance(rows, Iterator) else rows
    kinds: dict[bool, str] = {}
    for _, place, row in placed(rows, Notes(), name=name):
        given = {column: value for column, value in row.items() if value is not None}
        form = in_trl_form(given, place=place, notes=Notes())
        is_pair = is_rated(form) or "rejected" in form
        if is_pair and form.keys() & {"token_weights", "completion", "completion_ids"}:
            raise UserError(
                f"{place}: `rejected` stands beside columns of a `completion`; rename it to `completion`, or remove them."
            )
        kinds.setdefault(is_pair, place)
    if len(kinds) == 2:
        raise UserError(
            f"{kinds[True]} is a pair, and {kinds[False]} a completion: give rows of one kind, as `completion` or as "
            "`chosen` and `rejected`."
        )
    if True not in kinds:
        return completions_of_rows(rows, name=name, chat=chat)
    pairs, reading = pairs_of_rows(rows, name=name, chat=chat)
    wrong = [answer_row(pair, "rejected") | {"id": pair.prompt_id} for pair in pairs]
    said = {"the completion is `rejected`, and `chosen` is not read": len(wrong)}
    return wrong, replace(reading, mapped={**reading.mapped, **said})


def placed(rows: Iterable[Mapping[str, Any]], notes: Notes, *, name: str) -> Iterator[tuple[int, str, Row]]:
    """Yield the number, the place and the columns of each row in memory; `notes` keep those that are no dict."""
    of_arrow = hasattr(rows, "features")  # Arrow fills every object with the keys of all others
    for number, row in enumerate(rows):
        place = f"{name}, row {number}"
        if not isinstance(row, Mapping):
            notes.note_bad(
                UserError(f"{place} is a {type(row).__name__}: a row must be a dict of its columns.")
            )
            continue
        plain = without_nulls(dict(row)) if of_arrow else dict(row)
        if (key := half_a_pair(plain)) is not None:
            notes.note_bad(
                UserError(
                    f"{place}: `{key}` has half of a surrogate pair, which is no text; remove or complete it."
                )
            )
            continue
        yield number, place, plain


def _read(model: type[Model], row: Row, *, place: str, notes: Notes) -> Model:
    if isinstance(row.get("template"), dict) and row["template"].keys() <= set(TEMPLATE):
        row |= row.pop("template")  # a line of a run's file
    (refuse_weighing if "label" in model.model_fields else refuse_feedback)(row, place=place)
    note_ignored(notes, row, read=model.model_fields)
    return checked(model, row, place=place)


def _pairs(
    rows: Placed, notes: Notes, *, name: str, chat: bool, pairing: Pairing
) -> tuple[list[Pair], Reading]:
    found, kept, rated = [], [], RatedPairs(pairing, notes)
    for number, place, row in _ready(rows, rated, notes, pairing, chat=chat):
        with notes.bad_rows():
            one = _read(PairRow, row, place=place, notes=notes)
            sides = {"chosen": one.chosen, "rejected": one.rejected}
            if isinstance(one.chosen, str) and one.chosen == one.rejected:
                notes.dropped[EQUAL] += 1
                continue
            found.append(apart(one.prompt, sides, row, place=place, notes=notes))
            kept.append((number, row, one))
    pairs = []
    for answered, (number, row, one) in zip(without_repeats(found, notes), kept, strict=True):
        with notes.bad_rows():
            filled = {side: _filled(side, answered) for side in ("chosen", "rejected")}
            prompt, template = asked(answered.prompt, row, chat=chat, place=answered.place)
            given: dict[str, Any] = {"prompt_id": one.prompt_id or f"{name}-{number}", "prompt": prompt}
            for side, answer in filled.items():
                given |= _answer(side, answer, one, place=answered.place)
            pair = Pair(**given, template=template)
            if _key(pair, "chosen") == _key(pair, "rejected"):
                notes.dropped[EQUAL] += 1
                continue
            pairs.append(pair)
    notes.settle()
    rated.note()
    if notes.rows and not pairs:
        raise UserError(
            f"{name}: {notes.rows} rows, and in all of them `chosen` equals `rejected`; such a pair teaches nothing."
        )
    keys = {
        repr((pair.prompt, pair.template, _key(pair, "chosen"), _key(pair, "rejected"))) for pair in pairs
    }
    return pairs, notes.reading(duplicates=len(pairs) - len(keys))


def _ready(
    rows: Placed, rated: RatedPairs, notes: Notes, pairing: Pairing, *, chat: bool
) -> Iterator[tuple[int, str, Row]]:
    """Yield rows in TRL's form, of rated ones a row for each pair."""
    for number, place, row in rows:
        notes.rows += 1
        found, is_ready = [], False
        with notes.bad_rows():
            row = in_trl_form(row, place=place, notes=notes, chat=chat)
            is_ready = not is_rated(row)
            found = [row] if is_ready else list(rated.of(row, place=place))
        if pairing.margin and is_ready:
            raise UserError(
                f"{place}: pair.margin chooses among rated completions, and ready pairs are taken as they are: remove it."
            )
        yield from ((number, place, each) for each in found)


EQUAL = "`chosen` equals `rejected`, which teaches nothing"


def _key(pair: Pair, side: str) -> tuple[str, Message | None]:
    return getattr(pair, side).strip(), getattr(pair, f"{side}_message")


def _answer(name: str, side: Side, row: PairRow, *, place: str) -> dict[str, Any]:
    """Return the fields of a pair's side. The ids given for its text must be those of the bare answer."""
    given, message = getattr(row, f"{name}_token_ids"), getattr(row, f"{name}_message")
    fields = {name: text_of(side), f"{name}_message": _message(message, side, place=place)}
    if given is not None and message is not None:
        raise UserError(f"{place}: token ids and a message are given for one answer: remove one of them.")
    if given is not None and getattr(row, name) != side:
        raise UserError(
            f"{place}: token ids are the answer's alone: give `prompt` beside them, or remove them."
        )
    return fields | {f"{name}_finished": getattr(row, f"{name}_finished"), f"{name}_token_ids": given}


def _filled(name: str, answered: Answered) -> Side:
    side = answered.sides[name]
    if not text_of(side).strip() and (isinstance(side, str) or not side.is_more_than_text):
        raise UserError(
            f"{answered.place}: `{name}` has no completion after the prompt; drop the row or fill it."
        )
    return side


def _message(given: ChatMessage | None, side: Side, *, place: str) -> Message | None:
    """Return the answer's message if it is more than text; a `given` message must have the answer's text."""
    if given is not None and given.content != text_of(side):
        raise UserError(
            f"{place}: an answer and the message beside it have different texts; only one could be trained on: remove one."
        )
    side = given or side
    return side.record if isinstance(side, ChatMessage) and side.is_more_than_text else None
