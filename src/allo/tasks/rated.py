"""Rows of rated or ranked completions, as preference pairs."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from allo.errors import UserError
from allo.files.records import Verdict
from allo.files.rows import Notes, Row, named, shown
from allo.recipe.judge import Pairing
from allo.tasks.pairing import distinct
from allo.tasks.rewards import RANKED_FUNCTION, matched
from allo.tasks.row_forms import in_roles

SCORES, RANKS = "scores", ("ranks", "rank")
"""Columns as long as `completions`; of ranks, 1 is the best."""
_TEXT = ("response", "completion", "text", "output", "answer", "content")
_SCORE = ("overall_score", "fine-grained_score", "score", "rating", "reward", "rank")
"""Fields of a completion that is an object."""
Completion = str | list[Any]


def is_rated(row: Row) -> bool:
    """Return whether a row's completions have scores or ranks, beside them or inside each; `chosen` comes first."""
    completions = row.get("completions")
    if not isinstance(completions, list) or not completions or row.get("chosen") is not None:
        return False
    return any(row.get(name) is not None for name in (SCORES, *RANKS)) or all(map(_is_object, completions))


class RatedPairs:
    """The pairs of rated rows: a row's best completion with its worst, its second best with its second worst.

    The rule is that for rewarded samples (`pair.margin`, `pair.max_pairs_per_prompt`). Pairs that it leaves out are
    counted.
    """

    def __init__(self, pairing: Pairing, notes: Notes) -> None:
        self._pairing, self._notes = pairing, notes
        self._left_out: Counter[str] = Counter()
        self._rows_of: Counter[str] = Counter()
        self._rows = self._pairs = 0

    def of(self, row: Row, *, place: str) -> Iterator[Row]:
        """Yield a row's pairs as rows of `chosen` and `rejected`. Raises `UserError` naming the row."""
        completions, scores = _read(row, place=place, notes=self._notes)
        if not row.get("prompt") and not all(isinstance(each, list) for each in completions):
            raise UserError(f"{place}: lacks `prompt`, which rated completions need.")
        verdicts = [
            Verdict("", number, repr(_key(each)), True, False, score, None, RANKED_FUNCTION)
            for number, (each, score) in enumerate(zip(completions, scores, strict=True))
        ]
        kept = distinct(verdicts)
        most = self._pairing.max_pairs_per_prompt
        found = matched(kept, margin=self._pairing.margin)[:most]
        self._count(kept, len(found), num_repeated=len(verdicts) - len(kept))
        rest = {name: value for name, value in row.items() if name not in ("completions", SCORES, *RANKS)}
        for best, worst in found:
            yield {**rest, "chosen": completions[best.index], "rejected": completions[worst.index]}

    def _count(self, kept: Sequence[Verdict], num_found: int, *, num_repeated: int) -> None:
        self._rows, self._pairs = self._rows + 1, self._pairs + num_found
        scores = sorted((one.reward for one in kept), reverse=True)
        turns = range(num_found, min(self._pairing.max_pairs_per_prompt, len(scores) // 2))
        apart = [scores[turn] - scores[-1 - turn] for turn in turns]
        left_out = {
            "completions that repeat another of their row are left out": num_repeated,
            "pairs of equal scores are left out": sum(not each for each in apart),
            f"pairs of scores that differ by less than pair.margin {self._pairing.margin:g} are left out": sum(
                each > 0 for each in apart
            ),
        }
        for words, number in left_out.items():
            self._left_out[words] += number
            self._rows_of[words] += number > 0
        if not num_found:
            self._notes.dropped["no two of its completions may be paired by their scores"] += 1

    def note(self) -> None:
        """Note how many pairs were made and left out. Raises `UserError` if no rated row has one."""
        if not self._rows:
            return
        said = {words: f"{words} ({number:,} in all)" for words, number in self._left_out.items() if number}
        if not self._pairs:
            raise UserError(
                f"no preference pair can be made of {self._rows:,} rated rows: {'; '.join(said.values()) or 'none has two completions'}."
                f"{' Lower pair.margin.' if self._pairing.margin else ''}"
            )
        self._notes.mapped[
            "rated completions, the best paired with the worst, the second best with the second worst, and so on "
            f"(pairs in all: {self._pairs:,})"
        ] += self._rows
        for words, sentence in said.items():
            self._notes.mapped[sentence] += self._rows_of[words]


def _read(row: Row, *, place: str, notes: Notes) -> tuple[list[Completion], list[float]]:
    """Return a row's completions, each a text or messages, and their scores; of ranks, the negative ones."""
    completions = row["completions"]
    beside = [name for name in (SCORES, *RANKS) if row.get(name) is not None]
    inside = _fields(completions, _SCORE, place=place) if all(map(_is_object, completions)) else []
    if len(beside) + len(inside) != 1:
        found = " and ".join(map(named, [*beside, *inside])) or "none"
        raise UserError(f"{place}: `completions` need one score or rank each; found {found}; keep one.")
    if inside:
        (name,) = inside
        scores = [each[name] for each in completions]
    else:
        (name,) = beside
        scores = row[name]
    if not isinstance(scores, list):
        raise UserError(f"{place}: {named(name)} {shown(scores)}: must be a list as long as `completions`.")
    if len(scores) != len(completions):
        raise UserError(f"{place}: has {len(completions)} `completions` and {len(scores)} {named(name)}.")
    texts = [_completion(each, place=place, notes=notes) for each in completions]
    if name in RANKS:
        if not all(type(each) is int and each > 0 for each in scores) or 1 not in scores:
            raise UserError(
                f"{place}: {named(name)} {shown(scores)}: must be whole numbers, of which 1 is the best."
            )
        return texts, [-float(each) for each in scores]
    for each in scores:
        if type(each) not in (int, float) or not math.isfinite(each):
            raise UserError(f"{place}: {named(name)} has {shown(each)}: each score must be a finite number.")
    return texts, [float(each) for each in scores]


def _completion(given: Any, *, place: str, notes: Notes) -> Completion:
    if _is_object(given):
        names = [name for name in _TEXT if name in given]
        if len(names) != 1 or not isinstance(given[names[0]], str):
            found = ", ".join(map(named, sorted(given))) or "no fields"
            raise UserError(
                f"{place}: a completion has {found}; it needs its text under one of {', '.join(_TEXT)}."
            )
        notes.ignore(f"completions[].{name}" for name in given if name not in (*_TEXT, *_SCORE))
        return str(given[names[0]])
    given = in_roles(given, "completions", place=place)
    if isinstance(given, dict):
        return [given]
    if not isinstance(given, str | list):
        raise UserError(f"{place}: a completion is {shown(given)}: it must be a text or messages.")
    return given


def _fields(completions: Sequence[Row], names: Sequence[str], *, place: str) -> list[str]:
    """Return the named fields that completions have. Raises `UserError` if only some of them have one."""
    found = [name for name in names if any(each.get(name) is not None for each in completions)]
    for name in found:
        if any(each.get(name) is None for each in completions):
            raise UserError(f"{place}: some completions have {named(name)} and some have none.")
    return found


def _is_object(completion: Any) -> bool:
    return isinstance(completion, dict) and not completion.keys() & {"role", "from"}


def _key(completion: Completion) -> Completion:
    return completion.strip() if isinstance(completion, str) else completion
