"""Final answers: read from a text and compared with the right one (method 1.4)."""

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from allo.errors import UserError
from allo.tasks.answers.final_answer import LONGEST, announced_line, first_sentence
from allo.tasks.answers.number_words import is_only_number_words
from allo.tasks.answers.numerals import Quantity, parse_measures, parse_quantity
from allo.tasks.answers.options import LATEX_TEXT, identity, named_options
from allo.tasks.answers.phrases import YES_OR_NO, affirmed, denies, without_hedges, without_reason
from allo.tasks.answers.scripts import plain
from allo.tasks.answers.thoughts import DEFAULT, Marker, without_thoughts

_ARTICLES = {"a", "an", "the"}
_MATHEMATICS = re.compile(r"[\\^{}=]|[\w)]\s*[-+*/(,]|[\[(]\s*-?\w")
_PROSE = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{3,}")
_FUNCTIONS = {"sqrt", "sin", "cos", "tan", "log", "exp", "inf", "infty", "cup", "cap", "frac"}
_NO_RESULT = re.compile(
    r"[<>!≤≥≠:]=*\s*$|\b(?:if|for|when|whenever|where|with|at|because|since|given|unless|not)\b|=.*(?:\b(?:and|or)\b|[,;])",
    re.IGNORECASE | re.DOTALL,
)
# "5? No, 6" and "B... wait, no, it is C" take the announced answer back.
_TAKEN_BACK = re.compile(r"(?:\?|\.{3})\s*(?:(?:oh|wait|hmm+)[,.]*\s+)*no\b\s*[-,.;:!–—]", re.IGNORECASE)
_ASIDE = re.compile(r"(.*\S)\s+\(([^()]+)\)", re.DOTALL)
_NO_ASIDE = re.compile(r"[^()]*[\d+*/^=<>\\]|(?:or|and|no)\b|[^\W\d_]\b", re.IGNORECASE)
# No expression ends or begins like "5+", "--5" or "/5".
_UNFINISHED = re.compile(r"[-+*/^#@&~]\s*$|[-+]\s*[-+]|^\s*[*/^]")
_SYMBOL = re.compile(r"\d\s*([^\W\d_]{1,2})$")  # case distinguishes units: 5 M is not 5 m
_LONGEST_EXPRESSION = 300
_TIMEOUT_SECONDS = 5


@dataclass(frozen=True)
class Verified:
    """A verdict on a completion: whether it is right, its final answer (None without one), and the rule applied."""

    correct: bool
    extracted: str | None
    verifier: str


def verify_final_answer(
    text: str, answer: str, *, markers: Sequence[Marker] = DEFAULT, begins_inside: bool = False
) -> Verified:
    """Verify a free-form final answer: a number, a LaTeX expression or words.

    Thoughts hold no answer, and a completion that ends inside a thought has none (see `without_thoughts`).
    """
    line = _announced(text, markers, begins_inside=begins_inside)
    found = None if line is None else first_sentence(line, [plain(answer)])
    return Verified(found is not None and same_answer(found, answer), found, "final_answer")


def verify_choice(
    text: str,
    answer: str,
    choices: Sequence[str],
    *,
    markers: Sequence[Marker] = DEFAULT,
    begins_inside: bool = False,
) -> Verified:
    """Verify the final answer to a problem with options, given as an option's text, letter or number.

    An answer that names no option, or several different ones, is wrong. `answer` is the right option's text.
    """
    choices = [plain(choice) for choice in choices]
    line = _announced(text, markers, begins_inside=begins_inside, choices=choices)
    if line is None:
        return Verified(False, None, "choice")
    named = named_options(line, choices)
    return Verified(named == {identity(plain(answer))}, first_sentence(line), "choice")


def same_answer(found: str, gold: str) -> bool:
    r"""Return whether two final answers are equal as numbers, otherwise as mathematics, otherwise as words.

    Numbers may have separators, currency, fractions, percent, powers of ten or number words: 1,200 = $1200.00 and 1/2
    = 0.5 = 50%. A unit on one side only is accepted; two different units are not. A number is never compared with an
    answer that holds several. math-verify compares mathematics.
    """
    found, gold = plain(found).strip(), plain(gold).strip()
    if max(len(found), len(gold)) > LONGEST:
        return found == gold
    found, gold = _one_form(found), _one_form(gold)
    if _words(found) != _words(gold):
        found = bare_answer(found)
        if _words(gold) in ("yes", "no") and (said := YES_OR_NO.match(found)):
            return said[1].lower() == _words(gold)
    found, gold = _result(found, beside=gold), _result(gold, beside=found)
    found_quantity, gold_quantity = _quantities(found, gold)
    if found_quantity is not None and gold_quantity is not None:
        return found_quantity.same(gold_quantity)
    if (measures := parse_measures(found)) and measures == parse_measures(gold):
        return True
    one_alone = (found_quantity is None) != (gold_quantity is None)
    if _words(found) == _words(gold):
        return not one_alone or len({*_SYMBOL.findall(found), *_SYMBOL.findall(gold)}) < 2
    if "," in found + gold and one_alone:
        return False  # one number beside several, which mathematics would read as a set
    found, gold = _in_latex(found), _in_latex(gold)
    return _is_mathematics(found) and _is_mathematics(gold) and _same_mathematics(found, gold)


def bare_answer(text: str) -> str:
    """Return an answer without hedges, reasons, denials and asides: "probably 5 (five), because ..." is 5."""
    text = without_hedges(without_reason(affirmed(text)))
    found = _ASIDE.fullmatch(text)
    if found is None:
        return text
    head, aside = (parse_quantity(part, words=True) for part in found.groups())
    if head is None and (denies(found[2]) or _NO_ASIDE.match(found[2])):
        return text
    return found[1] if head == aside else text


def _announced(
    text: str, markers: Sequence[Marker], *, begins_inside: bool, choices: Sequence[str] = ()
) -> str | None:
    said = without_thoughts(text, markers, begins_inside=begins_inside)
    line = None if said is None else announced_line(plain(said), choices)
    return None if line is None or _TAKEN_BACK.search(line) else line


def _quantities(found: str, gold: str) -> tuple[Quantity | None, Quantity | None]:
    """Return both sides' numbers; words count beside digits, or if both sides are number words only."""
    quantities = parse_quantity(found), parse_quantity(gold, given=True)
    if None in quantities and (
        any(quantities) or (is_only_number_words(found) and is_only_number_words(gold))
    ):
        return parse_quantity(found, words=True), parse_quantity(gold, words=True, given=True)
    return quantities


def _result(text: str, *, beside: str) -> str:
    """Return the result of an equation, if the answer it is compared with is not an equation.

    Several equations ("x = 1 or x = 2"), a condition ("5 if x = 3") and an inequality have no result.
    """
    before, equals, result = text.rpartition("=")
    if not equals or "=" in beside or _NO_RESULT.search(before):
        return text
    return result.strip()


def _one_form(text: str) -> str:
    """Return one form of indices and lists: 1010_{2} becomes 1010_2, and "1, 2, and 3" becomes "1, 2, 3"."""
    text = re.sub(r"\\text\s*\{(\s*,?\s+and\s+)\}", r"\1", re.sub(r"_\{(\w+)\}", r"_\1", text))
    return re.sub(r"(?<=\d),?\s+and\s+(?=-?\d+(?![\d/]))", ", ", text)


def _in_latex(text: str) -> str:
    """Replace signs with the commands that math-verify knows."""
    text = re.sub(r"√\s*(?:\(([^()]*)\)|(\w+))", r"\\sqrt{\1\2}", text)
    return text.replace("∞", "\\infty ")


def _words(text: str) -> str:
    r"""Return words for comparison: no case, no \text{...}, no articles, no punctuation at word ends."""
    bare_text = " ".join(LATEX_TEXT.sub(r"\1", text).replace("$", "").casefold().split())
    bare_text = re.sub(r"\b([a-z])\.(?=[a-z]\b)", r"\1", bare_text)  # p.m. becomes pm
    bare_text = re.sub(r" ?: ?", ":", bare_text)
    words = [word.strip(".,;:!?\"'`*“”‘’") for word in bare_text.split()]
    kept = [word for word in words if word and word not in _ARTICLES] or words
    return re.sub(r"^\((\w)\)$", r"\1", " ".join(kept))


def _is_mathematics(text: str) -> bool:
    """Return whether the text is only an expression; in prose, math-verify would pick out a number."""
    if _UNFINISHED.search(text.strip(" $")):
        return False
    if (
        len(text) > _LONGEST_EXPRESSION
        or text.count("^") > 8
        or re.search(r"\^\s*\{?[^}]*\^|\^\s*\{?\d{4}|\d{40}|\d{4}!|!.*[!^]|\^.*!", text)
    ):
        return False  # towers of powers and huge numbers never finish in a computer-algebra system
    bare_text = re.sub(r"\\(?:begin|end)\s*\{\w+\}|\\[A-Za-z]+", " ", LATEX_TEXT.sub(" ", text))
    if any(word.lower() not in _FUNCTIONS for word in _PROSE.findall(bare_text)) or " if " in bare_text:
        return False
    return bool(_MATHEMATICS.search(text)) or parse_quantity(text) is not None or len(text.strip(" $")) <= 2


def _same_mathematics(found: str, gold: str) -> bool:
    try:
        import math_verify
    except ImportError as error:
        raise UserError(
            f"comparing {found!r} with {gold!r} needs math-verify; install it with `pip install allo-align[math]`."
        ) from error
    # math-verify times out by signal, and only the main thread receives signals.
    seconds = _TIMEOUT_SECONDS if threading.current_thread() is threading.main_thread() else None
    found_parsed, gold_parsed = (
        math_verify.parse(f"${text.strip(' $')}$", parsing_timeout=seconds) for text in (found, gold)
    )
    return bool(math_verify.verify(gold_parsed, found_parsed, timeout_seconds=seconds))
