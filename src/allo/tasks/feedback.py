"""Labelled completions, good or bad, from users' files and from rows in memory."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allo.errors import UserError
from allo.files.records import Feedback, Wrong
from allo.files.rows import TRAIN, Notes, Reading, Row, shown, source_name, source_rows
from allo.tasks.pairs import AnswerRow, Placed, answers_of, placed

LABELS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
"""Labels that are read as true or false, as small letters."""


class LabelledRow(AnswerRow):
    """One row of a user's labelled feedback, in TRL's forms, or a line of a run's `03-feedback.jsonl`."""

    label: bool
    prompt_id: str | None = None


def read_feedback(
    source: str | Path,
    *,
    split: str = TRAIN,
    config: str | None = None,
    chat: bool = False,
    skip_bad: bool = False,
) -> tuple[list[Feedback], Reading]:
    """Return the labelled completions of a file, a folder or the hub (see `rows.source_rows`), and the fate of its rows.

    A row has `prompt`, `completion` and `label`; the first two are text or messages. Without `prompt`, `completion` or
    `messages` is a conversation that ends with the completion. `chat` turns a text prompt into one user message. Raises
    `UserError` naming the lines of rows of another form, unless `skip_bad` leaves them out.
    """
    notes = Notes(skip_bad=skip_bad)
    rows = source_rows(source, split=split, config=config, notes=notes)
    return _feedback(rows, notes, name=source_name(source, split=split), chat=chat)


def feedback_of_rows(
    rows: Iterable[Mapping[str, Any]], *, name: str = "rows", chat: bool = False
) -> tuple[list[Feedback], Reading]:
    """Return the labelled completions of rows in memory, read like those of a file.

    Errors begin with `NAME, row NUMBER`, counted from 0.
    """
    notes = Notes()
    return _feedback(placed(rows, notes, name=name), notes, name=name, chat=chat)


def label_of(value: Any) -> bool | None:
    """Return a label as true or false; None if it is neither."""
    return value if isinstance(value, bool) else LABELS.get(str(value).strip().lower())


def _feedback(rows: Placed, notes: Notes, *, name: str, chat: bool) -> tuple[list[Feedback], Reading]:
    found = answers_of(_labelled(rows, notes), LabelledRow, notes, chat=chat)
    feedback = [
        Feedback(prompt_id=one.prompt_id or f"{name}-{number}", label=one.label, **fields)
        for number, one, fields in found
    ]
    labels: dict[str, list[bool]] = defaultdict(list)
    for each in feedback:
        labels[_key(each)].append(each.label)
    if disputed := sum(len(each) for each in labels.values() if len(set(each)) > 1):
        notes.mapped["the same completion is labelled good and bad, and each label is kept"] += disputed
    return feedback, notes.reading(duplicates=sum(len(each) - len(set(each)) for each in labels.values()))


def _labelled(rows: Placed, notes: Notes) -> Iterable[tuple[int, str, Row]]:
    """Yield rows whose labels are true or false; those given otherwise are noted."""
    for number, place, row in rows:
        if row.keys() >= {"chosen", "rejected"}:
            raise UserError(
                f"{place}: `chosen` and `rejected` are a pair, not labelled feedback: name the file under `data.pairs`, or "
                "give `completion` and `label`."
            )
        if (given := row.get("label")) is not None and not isinstance(given, bool):
            label = label_of(given)
            if label is None:
                notes.note_bad(
                    UserError(
                        f"{place}: `label` {shown(given)}: must be true for a good completion or false for a bad one (1 and "
                        "0, and the texts of these four, are read as well)."
                    )
                )
                continue
            notes.mapped["label given as a number or text, and read as true or false"] += 1
            row = {**row, "label": label}
        yield number, place, row


def _key(row: Feedback) -> str:
    return repr((row.prompt, row.template, row.completion.strip(), row.message))


@dataclass(frozen=True)
class Labels:
    """The numbers of good and of bad completions, of prompts, and of prompts that have both kinds."""

    good: int
    bad: int
    prompts: int
    both: int

    @classmethod
    def of(cls, rows: Sequence[Feedback]) -> "Labels":
        kinds: dict[str, set[bool]] = defaultdict(set)
        for row in rows:
            kinds[repr((row.prompt, row.template))].add(row.label)
        good = sum(row.label for row in rows)
        return cls(good, len(rows) - good, len(kinds), sum(len(each) == 2 for each in kinds.values()))

    @property
    def words(self) -> str:
        return (
            f"{self.good:,} good and {self.bad:,} bad completions of {self.prompts:,} prompts, {self.both:,} of which have "
            "both; no pair is needed"
        )


def bad_completions(rows: Iterable[Feedback]) -> list[Wrong]:
    """Return the distinct bad completions, which have no right answer beside them."""
    bad: dict[str, Feedback] = {}
    for row in rows:
        if not row.label:
            bad.setdefault(_key(row), row)
    return [
        Wrong(
            id=f"{row.prompt_id}-bad-{number}",
            prompt_id=row.prompt_id,
            prompt=row.prompt,
            template=row.template,
            completion=row.completion,
            message=row.message,
            finished=row.finished,
            solution=None,
            right=[],
            token_ids=row.completion_ids,
        )
        for number, row in enumerate(bad.values())
    ]


def answer_rows(rows: Iterable[Feedback], *, label: bool) -> list[dict[str, Any]]:
    """Return the distinct completions with this label as rows for a trainer."""
    return [vars(row) for row in {_key(row): row for row in rows if row.label == label}.values()]
