"""Right answers of users' rows, read in the forms people use and tested with their own verifier."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from allo.errors import UserError
from allo.files.records import Prompt
from allo.files.rows import Notes, shown
from allo.tasks.answers import bare_answer, same_answer, verify_choice, verify_final_answer
from allo.tasks.answers.final_answer import SENTENCE_END, extract_final_answer
from allo.tasks.answers.options import identity
from allo.tasks.base import demonstrate

_LETTER = re.compile(r"(?:(?:option|choice|answer)\s*)?[(\[]?([A-Za-z])[)\]]?[.:]?", re.IGNORECASE)
_LETTER_AND_TEXT = re.compile(r"(?:[(\[]([A-Za-z])[)\]]|([A-Za-z])[).:])\s*(\S.*)", re.DOTALL)
# Samples end with the bare answer, which does not equal "Answer: 4".
_LABELLED = re.compile(
    r"\W*(?:the\s+)?(?:final\s+|correct\s+|right\s+)?(?:(?:answer|ans)\b\W*[:=]|(?:a|solution|result)\s*:)",
    re.IGNORECASE,
)
_INDEX = re.compile(r"\d{1,3}")


@dataclass(frozen=True)
class Given:
    """A row's answer as given, with its options."""

    place: str
    answer: str | int | None
    choices: list[str] | None


def right_answers(rows: Sequence[Given], notes: Notes) -> list[str | None]:
    """Return the answers as texts: a letter or index becomes its option, a GSM8K solution the text after `####`.

    Indices count from 0 or 1, as the source's rows show: one index is 0, or equals the number of options. Raises
    `UserError` for an answer that could mean two options, or none.
    """
    start = _first_index([row for row in rows if _index(row) is not None])
    return [_right_answer(row, start, notes) for row in rows]


def _right_answer(row: Given, start: int | None, notes: Notes) -> str | None:
    answer, choices = row.answer, row.choices
    if answer is None:
        return None
    if choices is not None and len({identity(choice) for choice in choices}) < len(choices):
        notes.mapped["two of the `choices` are the same"] += 1
    if choices:
        same = [choice for choice in choices if isinstance(answer, str) and _bare(choice) == _bare(answer)]
        if len(same) == 1 and answer != same[0]:
            notes.mapped["`answer` differs from its option in case, spaces or a full stop"] += 1
            return same[0]
        option = _lettered(row)
        if option is not None:
            notes.mapped["`answer` is a letter, read as the option's text"] += 1
            return option
        index = _index(row)
        if index is not None:
            notes.mapped[f"`answer` is an index that counts from {start}, read as the option's text"] += 1
            return _indexed(row, choices, index, start)
    if not isinstance(answer, str) and choices:
        raise UserError(f"{row.place}: `answer` {answer}: should be a valid string; put it in quotes.")
    answer = str(answer)
    if "####" not in answer or choices is not None:
        return answer
    final = answer.rsplit("####", 1)[1].strip()
    if not final:
        raise UserError(
            f"{row.place}: `answer` {shown(answer)}: nothing follows `####`; write the final answer."
        )
    notes.mapped["`answer` is a worked solution, read as what follows `####`"] += 1
    return final


def _lettered(row: Given) -> str | None:
    """Return the option that a letter names: by the options' own labels if all have one, otherwise by position."""
    answer, choices = row.answer, row.choices or []
    if not isinstance(answer, str) or _is_option(answer, choices):
        return None
    alone, before = _LETTER.fullmatch(answer.strip()), _LETTER_AND_TEXT.fullmatch(answer.strip())
    found = alone or before
    if found is None:
        return None
    letter = (found[1] or found[2] if found is before else found[1]).upper()
    labels = [_LETTER_AND_TEXT.fullmatch(choice.strip()) for choice in choices]
    own = [(label[1] or label[2]).upper() for label in labels if label is not None]
    places = own if choices and len(own) == len(choices) else [chr(ord("A") + n) for n in range(len(choices))]
    if places.count(letter) != 1:
        return None
    option = choices[places.index(letter)]
    if alone is None:
        return option if _bare(option) == _bare(found[3]) else None
    if any(_LETTER.fullmatch(choice.strip()) for choice in choices):
        raise UserError(
            f"{row.place}: `answer` {shown(answer)} is none of the `choices`, which are letters themselves; write the right "
            "option's text."
        )
    return option


def _index(row: Given) -> int | None:
    answer, choices = row.answer, row.choices
    if not choices or answer is None or (_is_option(str(answer), choices) and isinstance(answer, str)):
        return None
    written = str(answer).strip()
    if not _INDEX.fullmatch(written) or not int(written) <= len(choices):
        return None
    if any(re.search(r"\d", choice) for choice in choices):
        if not isinstance(answer, int):
            return None
        raise UserError(
            f"{row.place}: `answer` {answer} may be an index or one of the `choices`, which hold numbers; write the right "
            "option's text in quotes."
        )
    return int(written)


def _first_index(rows: Sequence[Given]) -> int | None:
    """Return the first index, 0 or 1; None if no row shows it. Raises `UserError` if rows contradict each other."""
    zero = next((row for row in rows if _index(row) == 0), None)
    top = next((row for row in rows if _index(row) == len(row.choices or [])), None)
    if zero and top:
        raise UserError(
            f"{top.place}: `answer` is an index that counts from 1, and in {zero.place} from 0; write the right options' "
            "texts."
        )
    return 0 if zero else 1 if top else None


def _indexed(row: Given, choices: list[str], index: int, start: int | None) -> str:
    if start is None:
        raise UserError(
            f"{row.place}: `answer` {row.answer!r} is an index into `choices`, and no row shows whether it counts from 0 or "
            "1; write the right option's text."
        )
    return choices[index - start]


def _is_option(answer: str, choices: Iterable[str]) -> bool:
    return _bare(answer) in {_bare(choice) for choice in choices}


def _bare(text: str) -> str:
    return " ".join(text.split()).removesuffix(".").casefold()


def check_gold(prompts: Iterable[Prompt], *, verifier: str = "auto") -> None:
    """Refuse prompts whose right answer their own verifier rejects: all their samples would count as wrong."""
    refused = [(prompt, why) for prompt in prompts if (why := _refusal(prompt, verifier=verifier))]
    if not refused:
        return
    (first, why), *others = refused
    ids = ", ".join(shown(prompt.id) for prompt, _ in others[:5])
    more = f" {len(others)} more: {ids}{', ...' if len(others) > 5 else ''}." if others else ""
    raise UserError(f"prompt {shown(first.id)}: {why}, or drop the row.{more}")


def _has_initials(answer: str) -> bool:
    """Return whether all full stops inside an answer belong to initials, as in "C. S. Lewis"."""
    stops = [end.start() for end in SENTENCE_END.finditer(answer.strip().rstrip(".!?"))]
    return bool(stops) and all(re.search(r"(?:^|[\s.])[A-Za-z]$", answer.strip()[:stop]) for stop in stops)


def _is_final(answer: str, extracted: str) -> bool:
    """Return whether the text is only a final answer: a worked solution equals itself, but no sample ends with it."""
    whole = same_answer(extracted, answer) or _has_initials(answer)
    one_line = "\n" not in answer.strip() or "\\" in answer  # LaTeX may span several lines
    return whole and one_line and not _LABELLED.match(answer) and bare_answer(answer) == answer


def _refusal(prompt: Prompt, *, verifier: str) -> str | None:
    """Return why no sample could be right, and what to do; None if the verifier accepts the right answer."""
    if prompt.answer is None:
        return None
    said = demonstrate(prompt.answer, None)
    if verifier == "choice" or (verifier == "auto" and prompt.choices is not None):
        verified = verify_choice(said, prompt.answer, prompt.choices or [])
    else:
        verified = verify_final_answer(said, prompt.answer)
        alone = _is_final(prompt.answer, extract_final_answer(said) or "")
        verified = replace(verified, correct=verified.correct and alone)
    if verified.correct:
        return None
    answer = shown(prompt.answer)
    if prompt.choices is not None and not _is_option(prompt.answer, prompt.choices):
        return f"`answer` {answer} is none of its `choices` {shown(prompt.choices)}; write the right option's text"
    if verified.extracted is None:
        return f"`answer` {answer} is no answer that can be read; write the final answer alone"
    return (
        f"`answer` {answer} is not taken by its own verifier, which reads {shown(verified.extracted)}; write the final answer "
        "alone"
    )
