"""One plain form for text in several scripts: digits, brackets, spaces and signs in ASCII, superscripts as powers."""

import re
import unicodedata

# Signs with the same meaning that Unicode's compatibility form (NFKC) does not unify.
_ALIKE = str.maketrans(
    {
        **dict.fromkeys("。۔।", ". "), **dict.fromkeys("、،", ", "),
        **dict.fromkeys("【〔〖「『", "("), **dict.fromkeys("】〕〗」』", ")"),
        **dict.fromkeys("\u200b\u200e\u200f\u2060\ufeff", ""),
        "\u2212": "-", "⁄": "/", "٫": ".", "٬": ",", "٪": "%",
    }
)  # fmt: skip
_RAISED = re.compile(r"[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")


def plain(text: str) -> str:
    """Return the text in NFKC, with digits, brackets, punctuation and signs of other scripts in ASCII.

    m² becomes m^2, 10⁻⁵ becomes 10^{-5}, 1010₂ becomes 1010_2, and 2½ becomes 2 1/2. Quotation marks stay.
    """
    if text.isascii():
        return text
    text = re.sub(r"(?<=\d)(?=[₀-₉])", "_", _RAISED.sub(_power, text))
    text = re.sub(r"(?=[¼-¾⅐-⅞])", " ", text).replace("№", "#")
    text = unicodedata.normalize("NFKC", text).translate(_ALIKE)
    return re.sub(r"[^\D0-9]", lambda digit: str(int(digit[0])), text)


def _power(raised: re.Match[str]) -> str:
    digits = unicodedata.normalize("NFKC", raised[0]).translate(_ALIKE)
    return f"^{digits}" if len(digits) == 1 else f"^{{{digits}}}"
