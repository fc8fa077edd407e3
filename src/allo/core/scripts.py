"""One plain form for text in several scripts: digits, brackets and signs as ASCII, letters as composed characters."""

import re
import unicodedata

# Written differently, meant alike. Quotation marks stay: apostrophes are dealt with where words are compared.
_PLAIN = {
    **dict.fromkeys("\u2212\ufe63", "-"),
    **dict.fromkeys("。｡۔।", ". "),
    **dict.fromkeys("、،", ", "),
    **dict.fromkeys("【〔〖「『", "("),
    **dict.fromkeys("】〕〗」』", ")"),
    **dict.fromkeys(
        "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f", " "
    ),
    **dict.fromkeys("\u200b\u200e\u200f\u2060\ufeff", ""),
    "⁄": "/",
    "٫": ".",
    "٬": ",",
    "٪": "%",
}
# Full-width forms, circled and bracketed letters and digits, and letters of mathematical alphabets.
_COMPATIBLE = re.compile("[\uff01-\uff5e\u3000\u2460-\u24ff\U0001d400-\U0001d7ff]")
_VULGAR_FRACTION = re.compile("[\u00bc-\u00be\u2150-\u215e]")
_SUPERSCRIPT = re.compile(r"[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")


class _Table(dict[int, str]):
    """The plain form of each character, found when it is first asked for."""

    def __missing__(self, code: int) -> str:
        self[code] = _plain_character(chr(code))
        return self[code]


_TABLE = _Table()


def plain(text: str) -> str:
    """Return the text with digits, brackets, punctuation and signs of other scripts as ASCII, composed (NFC)."""
    if text.isascii():
        return text
    text = unicodedata.normalize("NFC", text).translate(_TABLE)
    return re.sub(r"(?<=\d)(?=[₀-₉])", "_", text).translate(_LOWERED)


def without_superscripts(text: str) -> str:
    """Return the text with raised digits as powers: m² becomes m^2, and 10⁻⁵ becomes 10^{-5}."""
    return _SUPERSCRIPT.sub(_power, text)


def _plain_character(character: str) -> str:
    if character.isascii():
        return character
    if character in _PLAIN:
        return _PLAIN[character]
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    if _VULGAR_FRACTION.match(character):
        return " " + unicodedata.normalize("NFKC", character).replace("\u2044", "/")
    return unicodedata.normalize("NFKC", character) if _COMPATIBLE.match(character) else character


def _power(found: re.Match[str]) -> str:
    digits = found[0].translate(_RAISED)
    return f"^{digits}" if len(digits) == 1 else f"^{{{digits}}}"
