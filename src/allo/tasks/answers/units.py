"""Units and currencies, each under one name. Nothing is converted: an hour is not 60 minutes.

math-verify ignores units, so that 5 cm equals 5 m. pint knows no currencies, and would convert.
"""

import re

_PREFIXES = {"k": "kilo", "M": "mega", "G": "giga", "T": "tera", "m": "milli", "μ": "micro", "n": "nano"}
_SCIENTIFIC = {
    "m": "meter", "g": "gram", "L": "liter", "l": "liter", "s": "second", "W": "watt", "V": "volt", "A": "ampere",
    "J": "joule", "Hz": "hertz", "Pa": "pascal", "N": "newton", "Wh": "watt hour", "eV": "electronvolt",
    "mol": "mole", "K": "kelvin", "B": "byte", "cal": "calorie", "Ω": "ohm",
}  # fmt: skip
# Symbols whose case matters: mW is not MW.
_SYMBOLS = {
    **_SCIENTIFIC,
    **{
        short + symbol: long + name
        for short, long in _PREFIXES.items()
        for symbol, name in _SCIENTIFIC.items()
    },
    **{
        short + symbol: long + _SCIENTIFIC[symbol]
        for short, long in (("c", "centi"), ("d", "deci"))
        for symbol in "mgLl"
    },
    "h": "hour",
    "°": "degree",
}
_NAMES = {
    name: meaning
    for meaning, names in {
        "inch": "inches ′′", "foot": "feet ft ′", "yard": "yd yds", "mile": "mi", "ounce": "oz", "lb": "lbs",
        "gallon": "gal gals", "quart": "qt", "tablespoon": "tbsp", "teaspoon": "tsp", "hour": "hr hrs",
        "minute": "min mins", "second": "sec secs", "week": "wk wks", "year": "yr yrs", "degree": "deg",
        "degree celsius": "°c", "degree fahrenheit": "°f", "%": "percent pct", "square": "sq", "cubic": "cu",
        "square foot": "sqft", "square meter": "sqm", "cubic centimeter": "cc", "mile per hour": "mph",
        "kilometer per hour": "kph kmh kmph", "ampere": "amp amps", "kelvin": "kelvins", "hectare": "ha",
        "atmosphere": "atm", "radian": "rad", "fluid": "fl", "microgram": "mcg", "micrometer": "um micron",
    }.items()
    for name in names.split()
}  # fmt: skip
_MONEY = {
    name: meaning
    for meaning, names in {
        "dollar": "$ usd us$ buck", "euro": "€ eur", "£": "£ gbp quid", "yen": "¥ jpy", "won": "₩ krw",
        "rupee": "₹ rs inr", "yuan": "cny rmb renminbi", "ruble": "₽ rub rouble", "franc": "chf", "cent": "¢",
        "canadian dollar": "cad c$", "australian dollar": "aud a$", "singapore dollar": "sgd s$",
        "hong kong dollar": "hkd hk$", "taiwan dollar": "twd nt$", "real": "brl r$ reais", "mexican peso": "mxn",
        "peso": "₱ php", "baht": "฿ thb", "dong": "₫ vnd", "naira": "₦ ngn", "lira": "₺", "shekel": "₪ ils nis",
        "zloty": "zł pln", "hryvnia": "₴ uah", "rand": "zar", "rupiah": "idr rp", "koruna": "czk kč", "forint": "huf",
        "bitcoin": "₿ btc", "kr": "kr krona kronor krone kroner", "sek": "sek", "nok": "nok", "dkk": "dkk",
    }.items()
    for name in names.split()
}  # fmt: skip
_PLURALS = {
    "people": "person", "children": "child", "men": "man", "women": "woman", "mice": "mouse", "teeth": "tooth",
}  # fmt: skip
CURRENCY_SIGN = "[$¢-¥֏؋৳฿៛₠-\u20cf]"  # the signs in Unicode's category Sc
_CODES = "|".join(
    name.upper() if len(name) == 3 else f"{name}|{name.title()}"
    for name in _MONEY
    if name.isalpha() and len(name) <= 3
)
CURRENCY = rf"(?:[A-Z]{{1,2}}\$|{CURRENCY_SIGN}|(?:{_CODES})\.?(?=\s*[-\d.]))"
_EITHER = ({"pound", "lb"}, {"pound", "£"})
"""A pound is money or weight, which are different units."""
_MEASURES = {word for meaning in (*_SYMBOLS.values(), *_NAMES.values()) for word in meaning.split()}
_COINS = {word for meaning in _MONEY.values() for word in meaning.split()}
_NAMES |= _MONEY
_KNOWN = {*_MEASURES, *_COINS, "am", "pm"}
_LETTERS = set("mgLlshWVAJNKΩ")
"""The only letters that are units by themselves: 5 x is an expression."""
_WORD = re.compile(rf"[^\W\d_](?:[^\W\d_]|['’])*|[%°]|′{{1,2}}|{CURRENCY_SIGN}|°[CFcf]|[A-Z]{{1,2}}\$")
_POWERS = {"2": "square", "3": "cubic", "squared": "square", "cubed": "cubic"}
_POWER = re.compile(r"([A-Za-zµμ]+)(?:\s*\^\s*\{?([23])\}?(?!\d)|([23])(?!\w)|\s+(squared|cubed)\b)")
_REPEATED = {"a", "an", "each", "every"}
# A counted thing ends before these words: 5 slices of cake, 5 eggs in total, 5 years old.
_PREPOSITIONS = {"of", "for", "in", "from", "at", "on", "per", *_REPEATED}
_BEHIND = {
    *_PREPOSITIONS, "left", "remaining", "total", "altogether", "old", "tall", "long", "wide", "high", "deep", "away", "apart",
}  # fmt: skip
_MOST_WORDS = 4


def read_unit(text: str, *, one: bool = False) -> tuple[str, ...] | None:
    """Return the words after a number, each under one name; None if they are not a unit.

    A unit is either known here or a counted thing, which is in the plural unless the number is `one` or less.
    """
    if not text.strip():
        return ()
    attached = not text[0].isspace() and text[0] not in ",-"
    text = re.sub(r"\bper[ -]cent\b", "percent", text, flags=re.IGNORECASE)
    text = re.sub(r"\b(sq|cu|Rs|rs|approx|deg)\.", r"\1", text)
    text = re.sub(r"\bdeg(?:rees?)? ([CF])\b", r"°\1", re.sub(r"\bU\.?S\.? (?=dollar)", "", text))
    text = re.sub(r"[-·⋅]", " ", _POWER.sub(_power_first, re.sub(r"\s*/\s*", " per ", text)))
    pieces = [piece.strip(",") for piece in text.split()]
    if not pieces or not all(_WORD.fullmatch(piece) for piece in pieces):
        return None
    first = pieces[0]
    if len(first) == 1 and first.isalpha() and first not in ("mgLlsh" if attached else {"a", *_LETTERS}):
        return None  # 5x is an expression
    named = [_name(piece, last=at == len(pieces) - 1) for at, piece in enumerate(pieces)]
    for at, name in enumerate(named[:-1]):
        named[at] = ["per"] if name[0] in _REPEATED else name
    if attached and first.isalpha() and named[0][0] not in _KNOWN:
        return None
    head = next((at for at, name in enumerate(named) if name[0] in _BEHIND), len(named))
    if named[-1][0] in _PREPOSITIONS - {"each"}:
        return None
    if head and not _is_thing(pieces[:head], named[head - 1], one=one):
        return None
    return tuple(name for names in named for name in names)


def _is_thing(pieces: list[str], name: list[str], *, one: bool) -> bool:
    if len(pieces) > _MOST_WORDS or any(piece.lower() == "times" for piece in pieces[:-1]):
        return False  # "5 times the weight" is not 5
    return name[-1] in _KNOWN or (len(pieces[-1]) > 1 and (one or [pieces[-1].lower()] != name))


def currency(sign: str) -> tuple[str, ...]:
    """Return the name words of a currency's sign or code, as `read_unit` does; a nameless sign is its own name."""
    sign = sign.strip(". ").lower()
    return tuple(_MONEY.get(sign, sign).split())


def is_measure(unit: tuple[str, ...]) -> bool:
    """Return whether the unit is known here, so that the text before it is a number."""
    return bool(unit) and unit[-1] in _MEASURES | _COINS


def agree(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Return whether two units are compatible: "18", "18 dollars" and "18 dollars a day" are.

    A measure and its rate or product are not: 60 km is not 60 km/h, and 5 kW is not 5 kWh.
    """
    shorter, longer = sorted((one, other), key=len)
    if not all(a == b or {a, b} in _EITHER for a, b in zip(shorter, longer, strict=False)):
        return False
    if not shorter or len(longer) == len(shorter):
        return True
    return shorter[-1] not in _MEASURES - {"degree"} or longer[len(shorter)] not in _MEASURES | {"per"}


def _power_first(found: re.Match[str]) -> str:
    if not found[2] and not _MEASURES & set(_name(found[1], last=False)):
        return found[0]  # x2 and "5 squared" are not units
    return f"{_POWERS[found[2] or found[3] or found[4]]} {found[1]}"


def _name(word: str, *, last: bool) -> list[str]:
    """Return the words of a unit word's one name, in the singular."""
    lower = re.sub(r"(met|lit)re(?=s?$)", r"\1er", word.lower()).replace("gramme", "gram")
    singular = _PLURALS.get(lower, _singular(lower))
    if word in _SYMBOLS:
        return _SYMBOLS[word].split()
    if lower == "in" and last:
        return ["inch"]
    for name in (lower, singular):
        if name in _NAMES:
            return _NAMES[name].split()
    if lower in _SYMBOLS and len(word) > 1 and (word.isupper() or word.istitle() or word.islower()):
        return _SYMBOLS[lower].split()  # KM and Kg, but not mM
    return [singular]


def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("xes", "ches", "shes", "sses")):
        return word[:-2]
    return word.removesuffix("s") if len(word) > 2 and not word.endswith(("ss", "us")) else word
