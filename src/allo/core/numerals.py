"""Numbers as people and models write them: separators, currency, fractions, percent, powers of ten, units, words."""

import re
from dataclasses import dataclass
from fractions import Fraction

from allo.core.number_words import SCALES, in_digits
from allo.core.scripts import without_superscripts
from allo.core.units import CURRENCY_SIGNS, agree, currency, is_measure, read_unit

# Words beside which a number is not the whole answer.
_NO_WHOLE_ANSWER = {
    "and", "or", "plus", "minus", "negative", "times", "squared", "cubed", "over", "point", "half", "not", "to",
    "less", "more", "than", "between", "under", "least", "most", "fewer", "greater", "above", "below", "except",
    "without", "never", "neither", "nor", "either", "cannot", "wrong", "incorrect", "almost", "nearly", "unlike",
    "instead", "rather", "beyond", "no", "unlikely", "until", "before", "after", "divided", "multiplied", "but",
}  # fmt: skip

_GROUPED = r"\d{1,3}(?:[,_]\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}|\d{1,3}(?:'\d{3})+|\d{1,3}(?:\ \d{3})+(?!\d)"
_NUMBER = rf"(?:{_GROUPED}|\d+)(?:\.\d*)?|\.\d+"
_EUROPEAN = r"\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,}|\d+,\d{1,2}(?![.,]?\d)"
_CODE = r"(?:[A-Z]{1,2}\$|(?:USD|EUR|GBP|INR|JPY|CNY|CAD|AUD|CHF|RMB|KRW|Rs\.?|rs\.?)(?=\s*[-\d.]))"
_QUANTITY = re.compile(
    rf"""(?P<lead>(?:[A-Za-z']+\s+)*?)
    (?P<sign>[-+]?)\s*(?P<currency>[{CURRENCY_SIGNS}]|{_CODE})?\s*(?P<inner_sign>-?)
    (?:(?P<whole>\d+)\s+(?=\d+\s*/))?
    (?:(?P<european>{_EUROPEAN})|(?P<number>{_NUMBER}))
    (?:\s*(?:[xX×*·⋅]|\\times|\\cdot)\s*10\s*(?:\^|\*\*)\s*(?:\{{\s*(?P<braced>[-+]?\d{{1,3}})\s*\}}|(?P<power>[-+]?\d{{1,3}}))
    |[eE](?P<exponent>[-+]?\d{{1,3}})(?![\d.]))?
    (?:\s*/\s*(?P<under>[1-9]\d*))?
    (?P<unit>(?!\d).*)""",
    re.VERBOSE | re.DOTALL,
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
        return self.value == other.value and agree(self.unit, other.unit)


def parse_quantity(text: str, *, words: bool = False) -> Quantity | None:
    """Return the one number that a text states, with its unit; None if it states none, several or an expression.

    `words`: read number words, too, such as "five apples".
    """
    if len(text) > _LONGEST:
        return None
    written = _plain(text)
    match = _QUANTITY.fullmatch(_plain(in_digits(written)) if words else written)
    unit = None if match is None else read_unit(match["unit"])
    if match is None or unit is None:
        return None
    lead = match["lead"].lower().split()
    if _NO_WHOLE_ANSWER & {*lead, *unit} or any(word.endswith("n't") for word in (*lead, *unit)):
        return None
    money = currency(match["currency"] or "")
    if match["european"] and re.fullmatch(r"\d+,\d+", match["european"]) and not (money or is_measure(unit)):
        return None  # "3,5" may be two numbers, "3,5 kg" is one
    value = _value(match)
    remaining = list(unit)
    while remaining and remaining[0] in SCALES:
        value *= SCALES[remaining.pop(0)]
    if (match["sign"] == "-") != bool(match["inner_sign"]):
        value = -value
    if money and tuple(remaining[: len(money)]) == money:
        money = ()  # "$5 dollars"
    return Quantity(value, (*money, *remaining))


def parse_measures(text: str) -> tuple[Quantity, ...]:
    """Return the several numbers of one measure, such as "5 ft 6 in"; () unless every one has a unit that is known."""
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
    return value + int(match["whole"] or 0)


def _plain(text: str) -> str:
    """The text without LaTeX around its number."""
    text = text.strip()
    while len(text) > 1 and text[0] == text[-1] == "$":
        text = text[1:-1].strip()
    text = re.sub(r"(?<![\\\w$])\$([^$\s]|[^$\s][^$]*[^$\s\\])\$(?![\d$])", r"\1", text)  # $5$ dollars
    text = re.sub(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}", r" \1", without_superscripts(text))
    text = re.sub(r"\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}|\\[dt]?frac\s*(\d)\s*(\d)", _written_fraction, text)
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
