"""Numbers as people and models write them: separators, currency, fractions, percent, powers, units, words."""

import re
from dataclasses import dataclass
from fractions import Fraction

from allo.tasks.answers.number_words import PARTS, SCALES, in_digits
from allo.tasks.answers.units import CURRENCY, agree, currency, is_measure, read_unit

# Beside these words, a number is not the whole answer: "5 or more apples".
_NO_WHOLE_ANSWER = {
    "and", "or", "plus", "minus", "negative", "over", "point", "not", "no", "less", "more", "than", "fewer", "greater",
    "squared", "cubed", "except", "without", "unlike", "never", "neither", "nor", "but", "ten", "place", "digit", "decimal",
    *(PARTS.keys() - {"quarter"}),
}  # fmt: skip
_LEAD = r"""(?i:(?:(?:it|he|she|they|we|you|i|there|that|this|[a-z]|(?:the\s+)?(?:total|result|sum|value|number))
    \s+(?:is|are|was|were|equals|has|have|had|gets?|makes?|earns?|costs?|needs?|takes?|pays?|spends?)\s+)?
    (?:(?:about|approximately|approx|roughly|around|circa|ca|exactly|precisely|only|just|equals|the|number|total|a\s+total\s+of|
    equal\s+to|(?:rounded|rounds)(?:\s+(?:up|down|off))?\s+to)\s+)*)"""
_SCALES = {**SCALES, "k": 10**3, "m": 10**6, "mn": 10**6, "b": 10**9, "bn": 10**9, "tn": 10**12}

_GROUPED = r"\d{1,3}(?:[,_]\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}|\d{1,3}(?:'\d{3})+|\d{1,3}(?:\ \d{3})+(?!\d)"
_NUMBER = rf"(?:{_GROUPED}|\d+)(?:\.\d*)?|\.\d+"
_EUROPEAN = r"\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,}|\d+,\d{1,2}(?![.,]?\d)"
_QUANTITY = re.compile(
    rf"""{_LEAD}
    (?P<sign>[-+]?)\s*(?:(?P<currency>{CURRENCY})\s*(?P<inner_sign>-?))?\s*
    (?:(?P<whole>\d+)\s+(?=\d+\s*/))?
    (?:(?P<european>{_EUROPEAN})|(?P<number>{_NUMBER}))
    (?:\s*(?:[xX×*·⋅]|\\times|\\cdot)\s*10\s*(?:\^|\*\*)\s*(?:\{{\s*(?P<braced>[-+]?\d{{1,3}})\s*\}}|(?P<power>[-+]?\d{{1,3}}))
    |[eE](?P<exponent>[-+]?\d{{1,3}})(?![\d.]))?
    (?:\s*/\s*(?P<under>[1-9]\d*))?
    (?P<scale>[kKMB](?![\w/])|\s?(?:[kM](?![\w/])|(?:bn|mn|tn)\b)|(?:\s+(?:{"|".join(SCALES)})s?\b)+)?
    (?P<unit>(?!\d).*)""",
    re.VERBOSE | re.DOTALL,
)
_LONGEST = 120  # characters; this also bounds the digits that Python converts


@dataclass(frozen=True)
class Quantity:
    """An exact number; `unit` holds the words after it in the singular, including currency and percent."""

    value: Fraction
    unit: tuple[str, ...]

    def same(self, other: "Quantity") -> bool:
        """Return whether the numbers are equal and the units compatible; 50% equals 50 and 0.5."""
        if ("%" in self.unit) != ("%" in other.unit):
            percent, plain = (self, other) if "%" in self.unit else (other, self)
            return not plain.unit and plain.value in (percent.value, percent.value / 100)
        return self.value == other.value and agree(self.unit, other.unit)


def parse_quantity(text: str, *, words: bool = False, given: bool = False) -> Quantity | None:
    """Return the number that a text states, with its unit; None for none, several or an expression.

    `words` also reads number words, such as "five apples". `given` marks a right answer, whose unit may be any word.
    """
    if len(text) > _LONGEST:
        return None
    written = _plain(text)
    match = _QUANTITY.fullmatch(_plain(in_digits(written)) if words else written)
    if match is None:
        return None
    value = _value(match)
    unit = read_unit(match["unit"], one=given or abs(value) <= 1)
    if unit is None or _NO_WHOLE_ANSWER & set(unit) or any(word.endswith("n't") for word in unit):
        return None
    money = currency(match["currency"] or "")
    if match["european"] and re.fullmatch(r"\d+,\d+", match["european"]) and not (money or is_measure(unit)):
        return None  # "3,5" may be two numbers, but "3,5 kg" is one
    if (match["sign"] == "-") != bool(match["inner_sign"]):
        value = -value
    if money and unit[: len(money)] == money:
        money = ()  # "$5 dollars"
    return Quantity(value, (*money, *unit))


def parse_measures(text: str) -> tuple[Quantity, ...]:
    """Return the numbers of one compound measure, such as "5 ft 6 in"; () unless every unit is known."""
    parts = re.split(r"(?<=[A-Za-z.])[,\s]+(?:and\s+)?(?=\d)", _plain(text))
    found = [parse_quantity(part) for part in parts]
    measures = [quantity for quantity in found if quantity is not None and is_measure(quantity.unit)]
    return tuple(measures) if 1 < len(measures) == len(parts) else ()


def _value(match: re.Match[str]) -> Fraction:
    if match["european"]:
        digits = match["european"].replace(".", "").replace(",", ".")
    else:
        digits = re.sub(r"[,_' ]", "", match["number"]).rstrip(".") or "0"
    power = int(match["braced"] or match["power"] or match["exponent"] or 0)
    value = Fraction(digits) * Fraction(10) ** power / int(match["under"] or 1)
    value += int(match["whole"] or 0)
    for scale in (match["scale"] or "").lower().split():
        value *= _SCALES[scale if scale in _SCALES else scale.removesuffix("s")]
    return value


def _plain(text: str) -> str:
    """Return the text without the LaTeX around its number."""
    text = text.strip()
    while len(text) > 1 and text[0] == text[-1] == "$":
        text = text[1:-1].strip()
    text = re.sub(r"(?<![\\\w$])\$([^$\s]|[^$\s][^$]*[^$\s\\])\$(?![\d$])", r"\1", text)  # $5$ dollars
    text = re.sub(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}", r" \1", text)
    text = re.sub(r"\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}|\\[dt]?frac\s*(\d)\s*(\d)", _written_fraction, text)
    text = re.sub(r"(\d*)\.(\d*)(?:\\(?:overline|bar)\s*\{(\d+)\}|\((\d+)\))", _repeating, text)
    text = re.sub(r"\\!\s*", "", text)
    for written, plain in (("{,}", ","), ("\\,", " "), ("\\ ", " "), ("\\$", "$"), ("\\%", "%"), ("’", "'")):
        text = text.replace(written, plain)
    text = re.sub(r"\^\s*\{?\\circ\}?", "°", text)
    text = re.sub(
        r"^\s*(?:[~≈∼#]|\\approx|\\sim)\s*(?=[-\d.$£€¥₹])|\b(?:No|Nr|no|nr)\.\s*(?=\d)|№\s*(?=\d)", "", text
    )
    text = re.sub(r"\b(approx|ca)\.", r"\1", text)
    text = re.sub(r"^\s*(?:(?:minus|negative)\s+|[–‐‑]\s?)(?=[\d.$£€¥])", "-", text, flags=re.IGNORECASE)
    return text.strip().rstrip(".").strip()


def _written_fraction(match: re.Match[str]) -> str:
    return f" {match[1] or match[3]}/{match[2] or match[4]}"


def _repeating(match: re.Match[str]) -> str:
    r"""Return 0.1\overline{6} or 0.1(6) as a fraction."""
    repeated = match[3] or match[4]
    value = Fraction(int(repeated), (10 ** len(repeated) - 1) * 10 ** len(match[2]))
    value += Fraction(f"{match[1]}.{match[2]}0")
    return f"{value.numerator}/{value.denominator}"
