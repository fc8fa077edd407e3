"""Final answers: read from a text, and compared with the right one (method 1.4)."""

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from allo.core.numerals import parse_quantity
from allo.errors import UserError

ANNOUNCEMENT = re.compile(r"\bthe (?:final |correct |right )?answer is\b", re.IGNORECASE)
# A full stop ends the sentence where no digit or letter follows it, and no title, unit or backslash precedes it.
SENTENCE_END = re.compile(
    r"(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bMt)(?<!\bsq)(?<!\\)[.!?]+(?=[\s\"'”’*$)]|$)",
    re.IGNORECASE,
)
ARTICLES = {"a", "an", "the"}
NEGATIONS = {"not", "neither", "nor", "never", "none", "isnt", "arent", "cannot", "except"}
# A letter alone, or in or before brackets or a stop: "B", "(B)", "B. bottle"; never the article in "A bottle".
LETTER = re.compile(
    r"(?:(?i:option|choice|letter)\s+)?(?:\(([A-Za-z])\)(.*)|([A-Za-z])(?:[.):](.*))?)", re.DOTALL
)
BRACKETED_LETTER = re.compile(r"\(([A-Z])\)")
YES_OR_NO = re.compile(r"(yes|no)(?!\s*[-/]\s*(?:yes|no)\b)\s*(?:[,;:.!–—-]|$)", re.IGNORECASE)
REASON = re.compile(r"(?<=\S)[,;]?\s+(?:because|since)\b.*", re.IGNORECASE | re.DOTALL)
LATEX_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
MATHEMATICS = re.compile(r"[\\^{}=]|[\w)]\s*[-+*/(,]|[\[(]\s*-?\w")
PROSE = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{3,}")
FUNCTIONS = {"sqrt", "sin", "cos", "tan", "log", "exp", "inf", "infty", "cup", "cap", "frac"}
LONGEST_EXPRESSION = 300
TIMEOUT_SECONDS = 5


@dataclass(frozen=True)
class Judgement:
    """Whether a completion's final answer is right, what it is (None: there is none), and which rule said so."""

    correct: bool
    extracted: str | None
    verifier: str


def verify_final_answer(text: str, answer: str) -> Judgement:
    """Judges a free-form final answer: a number, an expression in LaTeX, or words."""
    found = extract_final_answer(text)
    return Judgement(found is not None and same_answer(found, answer), found, "final_answer")


def verify_choice(text: str, answer: str, choices: Sequence[str]) -> Judgement:
    """Judges the final answer of a problem with options, given as an option's text or letter.

    An answer that names no option, or several different ones, is wrong. `answer` is the right option's text.
    """
    found = extract_final_answer(text)
    named = set() if found is None else _named_options(found, _announced_line(text) or found, choices)
    return Judgement(named == {_exact(answer)}, found, "choice")


def extract_final_answer(text: str) -> str | None:
    r"""What follows the last "The answer is", up to the end of the sentence or line; None where nothing does.

    The stop, quotes, emphasis, `$...$` and `\boxed{...}` around the answer are taken off; the stop in 3.50
    does not end it.
    """
    line = _announced_line(text)
    if line is None:
        return None
    boxed = last_boxed(line)
    if boxed is None:
        end = SENTENCE_END.search(line)
        boxed = line[: end.start()] if end else line
    return _bare(boxed) or None


def last_boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...}, braces balanced, or \boxed of one word; None without a whole one."""
    start = text.rfind("\\boxed")
    braced = re.compile(r"\\boxed\s*\{").match(text, max(start, 0))
    if braced is None:
        word = re.compile(r"\\boxed\s+([^\s${}\\]+)").match(text, max(start, 0))
        return word[1] if word else None
    depth = 1
    for end in range(braced.end(), len(text)):
        depth += (text[end] == "{") - (text[end] == "}")
        if depth == 0:
            return text[braced.end() : end].strip()
    return None


def same_answer(found: str, gold: str) -> bool:
    r"""Whether two final answers are the same: as numbers, else as mathematics, else as words.

    Numbers: separators, currency, fractions and percent are understood (1,200 = $1200.00, 1/2 = 0.5 = 50%);
    a unit that one side alone has is let pass, two different units are not. A number is never compared with
    an answer that holds several. Mathematics goes to math-verify.
    """
    found, gold = _result(found, beside=gold), _result(gold, beside=found)
    found_quantity, gold_quantity = parse_quantity(found), parse_quantity(gold)
    if found_quantity is not None and gold_quantity is not None:
        return found_quantity.same(gold_quantity)
    if _words(found) == _words(gold):
        return True
    if "," in found + gold and (found_quantity is None) != (gold_quantity is None):
        return False  # one number beside several, which mathematics would take for a set
    return _is_mathematics(found) and _is_mathematics(gold) and _same_mathematics(found, gold)


def _result(text: str, *, beside: str) -> str:
    """What an equation comes to, where the answer that it is compared with is none."""
    return text.rsplit("=", 1)[1].strip() if "=" in text and "=" not in beside else text


def _announced_line(text: str) -> str | None:
    """The rest of the line after the last announcement (of the next line, where nothing is left of it)."""
    parts = ANNOUNCEMENT.split(text)
    if len(parts) == 1:
        return None
    rest = parts[-1].lstrip(" \t\r\n:*_").removeprefix("\\[").removeprefix("\\(").lstrip()
    return rest.split("\n", 1)[0].strip() or None


def _bare(text: str) -> str:
    text = (
        text.strip(" \t\r*_`\"“”'‘’")
        .rstrip(" .,;:!")
        .removesuffix("\\]")
        .removesuffix("\\)")
        .strip(' *_`"“”')
    )
    while len(text) > 1 and text[0] == text[-1] == "$":
        text = text[1:-1].strip()
    return text.rstrip(".").strip()


def _exact(option: str) -> str:
    return " ".join(option.casefold().strip().removesuffix(".").split())


def _tokens(text: str) -> tuple[str, ...]:
    """Words and numbers without articles and punctuation; the sign and the point of a number stay."""
    bare = re.sub(r"['’]", "", text.casefold())
    tokens = re.findall(r"(?<!\w)-?\d+(?:[.,:/]\d+)*|[^\W_]+", bare)
    return tuple(token for token in tokens if token not in ARTICLES) or tuple(tokens)


def _named_options(sentence: str, line: str, choices: Sequence[str]) -> set[str]:
    """The options (as `_exact` writes them) that an answer names."""
    options = {_exact(choice) for choice in choices}
    sentence, line = (LATEX_TEXT.sub(r"\1", text) for text in (sentence, line))
    for answer in (line, sentence):  # the line first: an option's own text may hold a full stop
        for written in (_exact(_bare(answer)), _exact(answer)):
            if written in options:
                return {written}
    if options == {"yes", "no"} and (said := YES_OR_NO.match(sentence)):
        return {said[1].lower()}  # in what follows, "no" is a common word
    named = _named_once(sentence, line, choices)
    if len(named) == 1 or not REASON.search(sentence):
        return named
    # A reason may name other options, or say "not".
    return _named_options(REASON.sub("", sentence), REASON.sub("", line), choices)


def _named_once(sentence: str, line: str, choices: Sequence[str]) -> set[str]:
    """The options that the answer's letters name, or its words where it is no denial."""
    options = [_exact(choice) for choice in choices]
    letters = {chr(ord("A") + place): option for place, option in enumerate(options)}
    lettered = LETTER.fullmatch(_bare(line)) or LETTER.fullmatch(sentence)
    first = (lettered[1] or lettered[3]).upper() if lettered is not None else None
    if lettered is not None and first in letters:
        rest = SENTENCE_END.split(lettered[2] or lettered[4] or "", maxsplit=1)[0]
        named = {letters[first]}
    elif NEGATIONS & set(_tokens(sentence)):
        return set()
    else:
        rest, named = sentence, set()
    named |= {letters[letter] for letter in BRACKETED_LETTER.findall(rest) if letter in letters}
    words = _exact(_bare(rest))
    return named | ({words} if words in options else _mentioned(rest, set(options)))


def _mentioned(sentence: str, options: set[str]) -> set[str]:
    """The options whose words stand in the sentence; longer options first, so that no part of one counts."""
    words = f" {' '.join(_tokens(sentence))} "
    found = set()
    for tokens in sorted({_tokens(option) for option in options}, key=len, reverse=True):
        mention = f" {' '.join(tokens)} "
        if tokens and mention in words:
            words = words.replace(mention, " | ")
            found |= {option for option in options if _tokens(option) == tokens}
    return found


def _words(text: str) -> str:
    r"""Words as they are compared: no case, no \text{...}, no articles, no punctuation at a word's end."""
    bare = LATEX_TEXT.sub(r"\1", text).replace("$", "").casefold()
    bare = re.sub(r"\b([a-z])\.(?=[a-z]\b)", r"\1", bare)  # p.m. is pm
    bare = re.sub(r"\s*:\s*", ":", bare)
    words = [word.strip(".,;:!?\"'`*“”‘’") for word in bare.split()]
    kept = [word for word in words if word and word not in ARTICLES] or words
    return re.sub(r"^\((\w)\)$", r"\1", " ".join(kept))


def _is_mathematics(text: str) -> bool:
    """Whether it is an expression and nothing else; in prose math-verify would pick a number to compare."""
    if (
        len(text) > LONGEST_EXPRESSION
        or text.count("^") > 8
        or re.search(r"\^\s*\{?[^}]*\^|\^\s*\{?\d{4}|\d{40}|\d{4}!", text)
    ):
        return False  # towers of powers and huge numbers keep a computer-algebra system busy for ever
    bare = re.sub(r"\\(?:begin|end)\s*\{\w+\}|\\[A-Za-z]+", " ", LATEX_TEXT.sub(" ", text))
    if any(word.lower() not in FUNCTIONS for word in PROSE.findall(bare)):
        return False
    return bool(MATHEMATICS.search(text)) or parse_quantity(text) is not None or len(text.strip(" $")) <= 2


def _same_mathematics(found: str, gold: str) -> bool:
    try:
        import math_verify
    except ImportError as error:
        raise UserError(
            f"comparing {found!r} with {gold!r} needs math-verify; install it with `pip install allo-align[math]`."
        ) from error
    # math-verify's timeout is a signal, and signals reach the main thread alone.
    seconds = TIMEOUT_SECONDS if threading.current_thread() is threading.main_thread() else None
    found_parsed, gold_parsed = (
        math_verify.parse(f"${text.strip(' $')}$", parsing_timeout=seconds) for text in (found, gold)
    )
    return bool(math_verify.verify(gold_parsed, found_parsed, timeout_seconds=seconds))
