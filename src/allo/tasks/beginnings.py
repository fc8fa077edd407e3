"""The beginning that two texts share, cut at the start of a word and a token."""

import re
import unicodedata

# Special tokens such as <|tool_call|>, </think> or [INST]; they must stay whole.
_MARK = re.compile(r"<+[A-Za-z/|｜!?_$▁][^<>\n]{0,100}>+|\[+[^\[\]\n]{1,100}\]+|\{\{[^{}\n]{1,100}\}\}")
# Scripts without spaces, in which a word may begin at every character (in katakana: at every run).
_SPACELESS = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u309f\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff]"
)
_KATAKANA = re.compile("[\u30a0-\u30ff\u31f0-\u31ff\uff66-\uff9f]")
_JOINERS = "\u200c\u200d"
_INSIDE_WORDS = "'’-\u2010\u2011"
_INSIDE_NUMBERS = ".,:/"


def shared_beginning(first: str, second: str) -> str:
    """Return the beginning that both texts share, cut at the last place where a word and a token begin in both.

    A space belongs to the word after it, as in most tokenizers. These stay whole: numbers, words, runs of line breaks
    or of one sign, emoji with their modifiers, and special tokens in brackets (`<|end|>`, `[INST]`).
    """
    shorter = min(len(first), len(second))
    at = next((place for place in range(shorter) if first[place] != second[place]), shorter)
    marks = [mark.span() for text in (first, second) for mark in _MARK.finditer(text)]
    inside = {place for start, end in marks if start < at for place in range(start + 1, end)}
    while at and (at in inside or _joined(first, at) or _joined(second, at)):
        at -= 1
    return first[:at]


def _joined(text: str, at: int) -> bool:
    """Return whether no word or token begins at this place."""
    if at >= len(text):
        return False
    before, after = text[at - 1], text[at]
    if _extends(after) or before in _JOINERS or (_is_flag(before) and _is_flag(after)):
        return True
    if before.isspace() or after.isspace():
        return (before == " " and after != " ") or (before in "\r\n" and after in "\r\n")
    if _in_word(before) and _in_word(after):
        kinds = [bool(_KATAKANA.match(each)) for each in (before, after)]
        spaceless = any(_SPACELESS.match(each) for each in (before, after))
        return all(kinds) or not (any(kinds) or spaceless)
    return before == after or _inside(text, at - 1) or _inside(text, at)


def _inside(text: str, at: int) -> bool:
    """Return whether the sign at this place is inside a word (don't, e-mail) or a number (3.50, 12:30)."""
    if not 0 < at < len(text) - 1:
        return False
    around = text[at - 1] + text[at + 1]
    if text[at] in _INSIDE_NUMBERS:
        return around.isdigit()
    return text[at] in _INSIDE_WORDS and around.isalnum()


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "_" or _extends(character)


def _extends(character: str) -> bool:
    """Return whether it modifies the character before it: accents, joiners, variation selectors, skin tones, tags."""
    return (
        unicodedata.category(character).startswith("M")
        or character in _JOINERS
        or "\U0001f3fb" <= character <= "\U0001f3ff"
        or "\U000e0020" <= character <= "\U000e007f"
    )


def _is_flag(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"
