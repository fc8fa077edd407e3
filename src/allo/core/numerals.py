"""Numbers as people and models write them: separators, currency, fractions, percent, units."""

import re
from dataclasses import dataclass
from fractions import Fraction

CURRENCIES = {"$": "dollar", "£": "pound", "€": "euro", "¥": "yen"}
SCALES = {
    "dozen": 12,
    "hundred": 100,
    "thousand": 1_000,
    "million": 1_000_000,
    "billion": 1_000_000_000,
}
# Units of several names, by the one that is compared.
UNITS = {"°": "degree", "percent": "%", "per-cent": "%", "sq": "square", "cu": "cubic"}
POWERS = {"2": "square", "3": "cubic"}
# Words beside which a number is not the whole answer.
NOT_A_UNIT = {
    "and", "or", "plus", "minus", "negative", "times", "squared", "cubed", "over",
    "point", "half", "not", "to", "less", "more", "than", "between", "under",
}  # fmt: skip
ONE_LETTER_UNITS = {"m", "g", "l", "h", "s", "°"}

_NUMBER = r"(?:\d{1,3}(?:[,_]\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_UNIT_WORD = r"[A-Za-z°][A-Za-z°']*(?:[-/][A-Za-z]+)*"
_QUANTITY = re.compile(
    rf"""(?P<lead>(?:[A-Za-z']+\s+)*)
    (?P<sign>[-+−]?)\s*(?P<currency>[$£€¥]?)\s*(?P<inner_sign>[-−]?)
    (?:(?P<whole>\d+)\s+(?=\d+\s*/))?
    (?P<number>{_NUMBER})
    (?:\s*/\s*(?P<under>[1-9]\d*))?
    \s*(?P<after>[%$£€¥]?)
    (?P<unit>(?:,?\s+{_UNIT_WORD})*|(?:cm|mm|km|kg|mg|ml|lbs?|oz|ft|mph|am|pm|hrs?|min|sec)\b|°[CF]?)""",
    re.VERBOSE,
)
_LONGEST = 120  # characters; also bounds the digits that Python is asked to convert


@dataclass(frozen=True)
class Quantity:
    """An exact number. `unit` holds the words after it, singular (a currency and percent among them)."""

    value: Fraction
    unit: tuple[str, ...]

    def same(self, other: "Quantity") -> bool:
        """Equal numbers, whose units do not contradict each other; 50% equals 50 and 0.5."""
        if ("%" in self.unit) != ("%" in other.unit):
            percent, plain = (self, other) if "%" in self.unit else (other, self)
            return not plain.unit and plain.value in (percent.value, percent.value / 100)
        # "18 dollars" and "18 dollars a day" agree, and so does 18.
        agree = all(mine == theirs for mine, theirs in zip(self.unit, other.unit, strict=False))
        return self.value == other.value and agree


def parse_quantity(text: str) -> Quantity | None:
    """The one number that a text states, with its unit; None where it states none, several or an expression."""
    if len(text) > _LONGEST:
        return None
    match = _QUANTITY.fullmatch(_plain(text))
    if match is None:
        return None
    lead = match["lead"].lower().split()
    words = [word.strip(",") for word in match["unit"].lower().split()]
    if NOT_A_UNIT & {*lead, *words}:
        return None
    if any(len(word) == 1 and word != "a" and word not in ONE_LETTER_UNITS for word in words[:1]):
        return None  # "5 x" is an expression
    value = Fraction(re.sub(r"[,_]", "", match["number"]).rstrip(".") or "0") / int(match["under"] or 1)
    value += int(match["whole"] or 0)
    while words and words[0].removesuffix("s") in SCALES:
        value *= SCALES[words.pop(0).removesuffix("s")]
    if (match["sign"] in ("-", "−")) != bool(match["inner_sign"]):
        value = -value
    symbol = match["currency"] or match["after"]
    unit = [CURRENCIES.get(symbol, symbol)] if symbol else []
    for word in words:
        singular = UNITS.get(word) or _singular(word)
        if [singular] != unit:  # "$5 dollars"
            unit.append(singular)
    return Quantity(value, tuple(unit))


def _plain(text: str) -> str:
    """The text without LaTeX around its number."""
    text = text.strip()
    while len(text) > 1 and text[0] == text[-1] == "$":
        text = text[1:-1].strip()
    text = re.sub(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}", r" \1", text)
    text = re.sub(r"\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}|\\[dt]?frac\s*(\d)\s*(\d)", _written_fraction, text)
    text = re.sub(r"\\!\s*", "", text)
    for written, plain in (("{,}", ","), ("\\,", " "), ("\\ ", " "), ("\\$", "$"), ("\\%", "%")):
        text = text.replace(written, plain)
    text = re.sub(r"\^\s*\{?\\circ\}?", "°", text)
    text = re.sub(r"\b(sq|cu)\.", r"\1", text)
    text = re.sub(r"(?<=\s)([A-Za-z]{2,})\s*\^\s*\{?([23])\}?\s*$", _power_of_unit, text)  # 5 cm^2
    return (
        re.sub(r"^\s*(?:minus|negative)\s+(?=[\d.$£€¥])", "-", text, flags=re.IGNORECASE)
        .strip()
        .rstrip(".")
        .strip()
    )


def _written_fraction(match: re.Match[str]) -> str:
    return f" {match[1] or match[3]}/{match[2] or match[4]}"


def _power_of_unit(match: re.Match[str]) -> str:
    return f"{POWERS[match[2]]} {match[1]}"


def _singular(word: str) -> str:
    return word.removesuffix("s") if len(word) > 2 else word
