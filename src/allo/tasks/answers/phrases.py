"""The words around an answer: hedges before it, reasons after it, and denials."""

import re
from collections.abc import Iterator

_HEDGE = re.compile(
    r"""(?:(?:most|very|quite|almost\ certainly)\s+)?(?:probably|likely|perhaps|maybe|possibly|clearly|obviously|
    definitely|certainly|surely|indeed|simply|just|therefore|thus|hence|really|still|again|apparently|presumably|
    undoubtedly|actually|of\ course|indisputably|then|going\ to\ be|that\ it\ is|that|i\ think(?:\ it\ is|\ it's)?|
    i\ believe(?:\ it\ is|\ it's)?|i\ guess|must\ be|given\ by|found\ to\ be|equal\ to|as\ follows)\b[,:]?\s+""",
    re.IGNORECASE | re.VERBOSE,
)
YES_OR_NO = re.compile(
    r"(yes|no)(?!\s*[-/]\s*(?:yes|no)\b|\W*(?:(?:and|or)\W+)?(?:yes|no)\b(?!\s+\w))\s*(?:[,;:.!–—-]|$)",
    re.IGNORECASE,
)
_REASON = re.compile(r"(?<=\S)[,;]?\s+(?:because|since)\b.*", re.IGNORECASE | re.DOTALL)
_ASIDE = re.compile(
    r"(?<=\S),\s+(?:which|who|where|while|whereas|although|though|unlike|as|so|given|for|rounded|hence|thus|therefore)\b.*"
    r"|(?<=\S)\s+(?:although|though|whereas|unlike)\b.*",
    re.IGNORECASE | re.DOTALL,
)
# "not X but Y" and "instead of X, Y" mean Y.
_DENIED_FIRST = re.compile(
    r"(?:not|neither|nor)\b[^,;.]{1,80}?[,;]?\s+but\s+(?:rather\s+|instead\s+)?"
    r"|(?:instead\s+of|rather\s+than|unlike|contrary\s+to)\s[^,;]{1,80}[,;]\s*(?:it\s+is\s+|it's\s+)?"
    r"|not\b[^,;.]{1,80}?[,;]\s*(?:it\s+is\s+|it's\s+|rather\s+)",
    re.IGNORECASE,
)
# "Y, not X" and "Y rather than X" mean Y.
_DENIED_LAST = re.compile(
    r"(?<=\S)(?:\s*[,;(–—]\s*(?:and\s+|but\s+)?|\s+-\s*|\s+(?:and|but)\s+)(?:certainly\s+|definitely\s+)?not\b.*"
    r"|(?<=\S),?\s+(?:rather\s+than|instead\s+of|as\s+opposed\s+to|in\s+contrast\s+to|over(?!\s+\d))\s.*",
    re.IGNORECASE | re.DOTALL,
)
_CONTRACTED = re.compile(
    r"\b(?:is|are|was|were|do|does|did|has|have|had|ca|could|would|should|wo|must|need)n['’]?t\b",
    re.IGNORECASE,
)
_DENIAL = re.compile(
    r"""\b(?:not|neither|nor|never|none|cannot|except|wrong|incorrect|false|unlikely|excluded|eliminated|hardly|
    ruled\s+out|doubt\s+it|far\s+from|(?:any|every)thing\s+but|other\s+than|opposite\s+of|
    without(?!\s+(?:an?\s+|any\s+)?(?:doubt|question)))\b|\bno\s+\||[❌✗✘✖🚫]""",
    re.IGNORECASE | re.VERBOSE,
)


def without_hedges(text: str) -> str:
    """Return the text without the hedges at its start: "probably B" becomes B."""
    while found := _HEDGE.match(text):
        text = text[found.end() :]
    return text


def denies(text: str) -> bool:
    """Return whether the text holds a word or mark of denial."""
    return bool(_DENIAL.search(text) or _CONTRACTED.search(text))


def shorter_readings(text: str) -> Iterator[str]:
    """Yield the text with its reason, then its aside, then its denials removed."""
    for part in (_REASON, _ASIDE, _DENIED_LAST):
        text = part.sub("", text)
        yield text
    if found := _DENIED_FIRST.match(text):
        yield text[found.end() :]


def without_reason(text: str) -> str:
    """Return the text without the reason or aside at its end: "5, because 2+3=5" and "5, which is prime" become 5."""
    return _ASIDE.sub("", _REASON.sub("", text))


def affirmed(text: str) -> str:
    """Return the text without what it denies: "not 5 but 6" and "6, not 5" become 6."""
    text = _DENIED_LAST.sub("", text)
    found = _DENIED_FIRST.match(text)
    return text[found.end() :] if found else text
