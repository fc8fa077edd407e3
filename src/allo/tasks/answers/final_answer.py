"""The final answer of a text: the last one it announces, without its surroundings."""

import re
from collections.abc import Sequence
from itertools import takewhile

ANNOUNCEMENT = re.compile(r"\bthe (?:final |correct |right )?answer is\b", re.IGNORECASE)
# A full stop ends the sentence, unless a digit or letter follows it, or a title, a unit, "No." or a backslash
# precedes it.
SENTENCE_END = re.compile(
    r"(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bMt)(?<!\bsq)(?<!\bcu)(?<!\bRs)(?<!\bapprox)(?<!\\)"
    r"(?<![.!?])(?!(?<=\bN[or])\.\s*\d)[.!?]+(?=[\s\"'”’*$)]|$)",
    re.IGNORECASE,
)
LONGEST = 2000  # characters read from one line
_MOST_ANNOUNCEMENTS = 100
# A remark about an earlier answer, which is not an answer itself.
_REMARK = re.compile(
    r"""[\s:*_]*(?:(?:also|indeed|thus|therefore|now|then|not|quite|really|still|completely|definitely|probably)\s+)*
    (?:correct|right|accurate|good|fine|okay|wrong|incorrect|clear|unclear|obvious|evident|verified|confirmed|valid|invalid|consistent|
    inconsistent|reasonable|plausible|sensible|straightforward|unique|complete|justified|sound|exact|proven|proved|
    as\ (?:above|expected|before|stated|required|claimed|shown)|above|the\ same|what\ we)\b
    (?=\s*(?:[,;:.!?)*]|$|and\b|as\b|because\b|since\b|for\b|if\b|when\b|with\b|by\b|but\b|so\b|expected\b|wanted\b))""",
    re.IGNORECASE | re.VERBOSE,
)
# In "5, so the answer is right", the words before the second announcement do not belong to the answer.
_LEADS_ON = re.compile(
    r"(?:[,;]|\s+-+|\s*[–—])?\s+(?:so|and|thus|hence|therefore|because|since|which\s+(?:means|shows|confirms)|that)(?:\s+that)?,?\s*$",
    re.IGNORECASE,
)
_WRONG = re.compile(
    r"[\s:*_]*(?:\w+\s+)?(?:wrong|incorrect|not\s+(?:correct|right)|invalid)\b", re.IGNORECASE
)
_RETRACTION = re.compile(
    r"(?:^|[.!?\n])\s*(?:no|wait|actually|hmm+|oops|sorry|but|however)\b[^.!?\n]{0,60}$", re.IGNORECASE
)
_LEAD_IN = re.compile(
    r"\s*(?:(?:as follows|(?:given|shown|stated)\s+below)\s*[:.]?|(?:the following|below)\s*:)[\s*_]*$", re.I
)
_BULLET = re.compile(r"\s*(?:[-*•+–>]|\d{1,2}[.)])\s+(.*)", re.DOTALL)
# A list of one item: "1) Paris", and on a line of its own "1. 5"; "1. It follows from the rule." begins with the answer.
_ONLY_BRACKETED = re.compile(r"\(?1\)\s+(?=\S)")
_ONLY_NUMBERED = re.compile(r"1\.\s+(?=[-+$\\(]*\d|(?:\S+\s+){0,2}\S*[^\s.!?]$)")
_CELL = re.compile(r"\s*\|\s+([^|]*?)\s+\|\s*")  # a table row with one cell
_TAG = re.compile(r"</?(?:answer|final_answer|final|result|b|i|strong|em|code)>", re.IGNORECASE)
_TAGGED = re.compile(r"[\s:*_]*<(answer|final_answer|final|result)>", re.IGNORECASE)
_ENVIRONMENT = re.compile(
    r"\\(?:begin|end)\s*\{((?:align|aligned|equation|gather|gathered|split|multline|displaymath|math)\*?)\}"
)
# Ends of turns as most models write them, for texts whose tokenizer is not known.
_END_OF_TURN = re.compile(r"<\|\w{3,40}\|>|</s>|<end_of_turn>|<eos>")
_EMPHASIS = re.compile(r"\*\*([^*]+)\*\*")
_MATHEMATICS = {"$$": "$$", "\\[": "\\]"}
_MARK = "\\s\u2705\u2713\u2714\u2611\U0001f389\U0001f44d\U0001f44f\U0001f64c\U0001f60a\ufe0f"
MARKS = re.compile(f"(?<![{_MARK}.])[{_MARK}.]+$")
_MARKS_BEFORE = re.compile(f"^[{_MARK}]+")


def extract_final_answer(text: str, choices: Sequence[str] = ()) -> str | None:
    r"""Return the text from the last "The answer is" to the end of its sentence or line; None without any.

    A later remark, such as "so the answer is correct", is ignored unless it is one of the choices. A full stop,
    quotes, emphasis, tags, `$...$` and `\boxed{...}` around the answer are removed. The point in 3.50 does not end
    it.
    """
    line = announced_line(text, choices)
    return None if line is None else first_sentence(line)


def first_sentence(line: str, own: Sequence[str] = ()) -> str | None:
    """Return the answer in an announced line, without its surroundings; None if it is empty."""
    return bare(said_in(line, own)) or None


def said_in(line: str, own: Sequence[str] = ()) -> str:
    """Return the content of a line's box, otherwise its first sentence; full stops inside `own` texts do not end it."""
    boxed = last_boxed(line)
    if boxed is not None:
        return boxed
    spans = [
        found.span()
        for text in own
        if len(text) <= LONGEST and len(words := re.findall(r"[^\s.]+", text)) > 1
        for found in re.finditer(_with_stops(words), line, re.IGNORECASE)
    ]
    for end in SENTENCE_END.finditer(line):
        if not any(start < end.start() < stop for start, stop in spans):
            return line[: end.start()]
    return line


def _with_stops(words: list[str]) -> str:
    """Return a pattern of an option's words; the first may be an initial, stops and spaces may differ."""
    first, *others = map(re.escape, words)
    return r"[\s.]*".join((rf"(?<!\w)(?:{first}|{re.escape(words[0][0])}\.)", *others)) + r"(?!\w)"


def announced_line(text: str, choices: Sequence[str] = ()) -> str | None:
    """Return the line or block that follows the last announcement of an answer."""
    parts = ANNOUNCEMENT.split(_END_OF_TURN.sub("\n", text))[-_MOST_ANNOUNCEMENTS:]
    parts = [*(part[:-60] + _LEADS_ON.sub("", part[-60:]) for part in parts[:-1]), parts[-1]]
    options = {choice.strip().rstrip(".").casefold() for choice in choices}
    last = None
    for place in range(len(parts) - 1, 0, -1):
        line = _block(parts[place], of_options=bool(choices))
        if place == len(parts) - 1:
            last = line
        if line is None or not _REMARK.match(line) or (first_sentence(line) or "").casefold() in options:
            return line
        if _WRONG.match(line) and _RETRACTION.search(parts[place - 1][-LONGEST:]):
            return None
    return last


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last \boxed{...} with balanced braces, or of \boxed and one word; otherwise None."""
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


def bare(text: str) -> str:
    """Return an answer without surrounding quotes, emphasis, stop, check marks and `$...$`."""
    text = MARKS.sub("", text) or text
    text = _MARKS_BEFORE.sub("", text) or text
    text = (
        text.strip(" \t\r*_`\"“”'‘’")
        .rstrip(" .,;:!")
        .removesuffix("\\]")
        .removesuffix("\\)")
        .strip(' *_`"“”')
    )
    for _ in range(2):
        if len(text) > 1 and text[0] == text[-1] == "$":
            text = text[1:-1].strip()
    return _EMPHASIS.sub(r"\1", text.rstrip(".").strip())


def _block(rest: str, *, of_options: bool) -> str | None:
    """Return the rest of the line; if it is empty, the next line, list, code fence or mathematics block.

    A number before a list's only item is dropped, unless it may be an option's.
    """
    if tagged := _TAGGED.match(rest):
        rest = " ".join(re.split(rf"</{tagged[1]}>", rest[tagged.end() :], maxsplit=1, flags=re.I)[0].split())
    lines = rest.split("\n")
    if any(map(str.strip, lines[1:])):
        lines[0] = _LEAD_IN.sub("", lines[0].removesuffix("\r"))
    lines = [_EMPHASIS.sub(r"\1", line) for line in lines]
    lines[1:] = [f"- {cell[1]}" if (cell := _CELL.fullmatch(line)) else line for line in lines[1:]]
    place = next((at for at, line in enumerate(lines) if line.strip() and line.strip(" \t\r:*_")), None)
    if place is None:
        return None
    following = [line for line in lines[place:] if line.strip()]
    first = following[0].lstrip(" \t\r:*_") if place == 0 else following[0].strip()
    if not of_options and not _is_numbered(following):
        for number in (_ONLY_BRACKETED, _ONLY_NUMBERED)[: 2 if place else 1]:
            if found := number.match(first):
                first = first[found.end() :]
    fence, opened = first[:3], _ENVIRONMENT.match(first)
    closing = f"\\end{{{opened[1]}}}" if opened else _MATHEMATICS.get(first[:2], "")
    if fence in ("```", "~~~") and fence not in first[3:]:
        line = " ".join(takewhile(lambda one: not one.lstrip().startswith(fence), following[1:])) or first
    elif place and (_is_numbered(following) or (not first[0].isdigit() and _BULLET.fullmatch(first))):
        items = takewhile(bool, (_BULLET.fullmatch(one) for one in following))
        line = ", ".join(item[1].strip() for item in items if item)
    elif closing and closing in (block := " ".join((first, *following[1:]))[0 if opened else 2 :]):
        line = block[: block.index(closing)]
    else:
        line = first
    line = line.lstrip(" \t\r:*_").removeprefix("\\[").removeprefix("\\(").lstrip()
    return _clean(line[:LONGEST]) or None


def _is_numbered(lines: Sequence[str]) -> bool:
    return len(lines) > 1 and all(re.match(rf"\s*{at}[.)]\s", line) for at, line in enumerate(lines[:2], 1))


def _clean(line: str) -> str:
    if _ENVIRONMENT.search(line):
        line = re.sub(r"\\\\|&", " ", _ENVIRONMENT.sub(" ", line))
    return _TAG.sub("", line).strip()
