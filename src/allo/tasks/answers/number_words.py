"""Numbers in words: twenty-one, two hundred and five, half a dozen."""

import re

_SMALL = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_VALUES = {
    **{word: value for value, word in enumerate(_SMALL)},
    **{word: 10 * (place + 2) for place, word in enumerate(_TENS)},
}
SCALES = {
    "dozen": 12, "hundred": 100, "thousand": 1_000, "lakh": 100_000, "million": 10**6, "crore": 10**7,
    "billion": 10**9, "trillion": 10**12,
}  # fmt: skip
PARTS = {
    "half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9,
    "tenth": 10, "hundredth": 100, "thousandth": 1000,
}  # fmt: skip
_UNDER_HUNDRED = (
    rf"(?:(?:{'|'.join(_TENS)})(?:[\s-]+(?:{'|'.join(_SMALL[1:10])}))?|{'|'.join(reversed(_SMALL))})"
)
_AND = r"(?:,?\s+(?:and\s+)?)"
_NUMBER = (
    rf"(?:{_UNDER_HUNDRED}|an?(?=\s+(?:{'|'.join(SCALES)})\b))"
    rf"(?:[\s-]+(?:{'|'.join(SCALES)})\b(?:{_AND}{_UNDER_HUNDRED}(?!-?\w))?)*"
)
_RUN = re.compile(rf"\b{_NUMBER}(?!-?\w)", re.IGNORECASE)
_FRACTION = re.compile(
    rf"\b(an?|{'|'.join(_SMALL[1:10])})[\s-]+({'|'.join(PARTS)})(?:s|(?<=hal)ves)?\b", re.IGNORECASE
)
_HALVES = re.compile(r"\bhalves\b", re.IGNORECASE)
_AND_FRACTION = re.compile(r"(\d)\s+and\s+(?=\d/\d)")
_BEFORE_ONE = re.compile(
    r"\s*(?:(?:about|exactly|only|just|is|equals|minus|negative|[-$£€¥₹])\s*)*", re.IGNORECASE
)


def in_digits(text: str) -> str:
    """Return the text with its number words as digits, except the pronoun "one" ("the second one")."""
    text = re.sub(r"\bhalf\s+a\s+dozen\b", "six", text, flags=re.IGNORECASE)
    text = _FRACTION.sub(_fraction, _HALVES.sub("half", text))
    text = _RUN.sub(lambda found: _digits(found, text), text)
    return _AND_FRACTION.sub(r"\1 ", text)


def is_only_number_words(text: str) -> bool:
    """Return whether the text is exactly one number in words."""
    return bool(_RUN.fullmatch(text.strip()))


def _fraction(found: re.Match[str]) -> str:
    if (
        found[2].lower() in ("quarter", "fourth")
        and "-" not in found[0]
        and found[1].lower() not in ("a", "one")
    ):
        return found[0]  # three quarters may be coins
    over = _VALUES.get(found[1].lower(), 1)
    return f"{over}/{PARTS[found[2].lower()]}"


def _digits(found: re.Match[str], text: str) -> str:
    words = re.findall(r"[a-z]+", found[0].lower())
    if words == ["one"]:
        before, after = text[: found.start()], text[found.end() :]
        if not _BEFORE_ONE.fullmatch(before) or re.match(r"\s+of\b", after):
            return found[0]
    total = group = 0
    for word in words:
        if word in SCALES and SCALES[word] <= 100:
            group = (group or 1) * SCALES[word]
        elif word in SCALES:
            total, group = total + (group or 1) * SCALES[word], 0
        else:
            group += _VALUES.get(word, 0)  # "a" and "and" add nothing
    return str(total + group)
