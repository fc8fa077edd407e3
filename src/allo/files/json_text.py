"""The one JSON reader for files, headers and servers: bounded in size, depth and digits."""

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from allo.errors import UserError

LARGEST = 1 << 30
"""Most bytes of one JSON text; callers may pass a lower limit."""
DEEPEST = 100
"""Most arrays and objects inside each other; ordinary JSON has about ten."""
MOST_DIGITS = 400
"""Most digits of one integer; the largest double has 309."""
_HALF_A_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(
    text: str | bytes, *, place: str, advice: str = "", largest: int = LARGEST, lenient: bool = False
) -> Any:
    """Return the value of a JSON text.

    Args:
        text: bytes are read as UTF-8; a byte-order mark is ignored.
        place: the beginning of errors, such as `FILE:LINE`.
        advice: a sentence that ends every error and says what to do.
        largest: most bytes (of a `str`: characters) of the text.
        lenient: for paid replies whose reader checks each value: read invalid or too long numbers as None, and
            accept half surrogate pairs.

    Raises:
        UserError: the text is not JSON, too large, nested too deep, or has a number with too many digits, a repeated
            key, `NaN`, `Infinity`, or half a surrogate pair (which UTF-8 cannot hold).
    """

    def refuse(why: str, error: Exception | None = None) -> NoReturn:
        raise UserError(f"{place}: {why}.{' ' if advice else ''}{advice}") from error

    if len(text) > largest:
        refuse(f"JSON of {len(text):,} bytes, and at most {largest:,} are read")
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            refuse(f"no UTF-8 text ({error.reason} at byte {error.start})", error)
    text = text.removeprefix("\ufeff")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_or_none(_no_number) if lenient else _no_number,
            parse_int=_or_none(_int) if lenient else _int,
            parse_float=_or_none(_float) if lenient else _float,
        )
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" if "\n" in text else f"column {error.colno}"
        refuse(f"not JSON ({error.msg}, {where})", error)
    except _RefusedError as error:
        refuse(str(error), error)
    except RecursionError:
        refuse(f"nested more than {DEEPEST} deep")
    if text.count("[") + text.count("{") > DEEPEST and _depth(value) > DEEPEST:
        refuse(f"nested more than {DEEPEST} deep")
    if not lenient and _HALF_A_PAIR.search(text) and (key := half_a_pair(value)) is not None:
        refuse(
            f"`{key}` has half of a surrogate pair (such as \\ud83d), which is no text; remove or complete it"
        )
    return value


def half_a_pair(value: Any) -> str | None:
    """Return the outermost key under which a string holds half a surrogate pair; None without one.

    A bare string that holds one yields "value".
    """
    if isinstance(value, dict):
        return next((str(key) for key, each in value.items() if not _is_text([key, each])), None)
    return None if _is_text(value) else "value"


def _is_text(value: Any) -> bool:
    strings = (each for each in _walk(value) if isinstance(each, str))
    return not any("\ud800" <= character <= "\udfff" for string in strings for character in string)


def _walk(value: Any) -> Iterator[Any]:
    """Yield the value and everything it holds, keys included, without recursion."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        yield each
        if isinstance(each, dict):
            waiting += [*each.keys(), *each.values()]
        elif isinstance(each, list):
            waiting += each


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return depth


class _RefusedError(Exception):
    """The reason for refusing a part of the text."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _RefusedError(f"the key {twice!r} is there twice in one object")
    return found


def _no_number(word: str) -> NoReturn:
    raise _RefusedError(f"{word} is no number")


def _int(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise _RefusedError(f"a number of {len(digits)} digits, and at most {MOST_DIGITS} are read")
    return int(digits)


def _float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise _RefusedError(f"the number {digits[:20]} is too large")
    return number


def _or_none(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a number reader that gives None for what `read` refuses."""

    def lenient(digits: str) -> Any:
        try:
            return read(digits)
        except _RefusedError:
            return None

    return lenient
