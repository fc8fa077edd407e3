"""Servers' words and numbers: why a text ended, how long it is, when to ask again; and their texts."""

import math
import re
import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

from allo.console import printable

_SHOWN = 300  # characters of a server's message
_SHORTEST_KEY = 8  # characters; a shorter key is not struck out of a server's message
SHORTEST_SECRET = 16
"""Characters. A shorter key may be a word in a key's place, which stands in good replies, too."""
MOST_TOKENS = 10**12
"""A larger count of tokens is none."""
# Why a text ended, in the words of servers: by itself, by its length, by a failure of the server, by a filter or the
# like. They are OpenAI's and those of TGI, Anthropic, Cohere, Gemini, Mistral, TensorRT-LLM and others.
BY_ITSELF = {
    *("stop", "stop_sequence", "stop_words", "eos", "eos_token", "eos_id"),
    *("end", "end_turn", "end_id", "complete"),
}
BY_STRING = {"stop_sequence", "stop_words"}  # of those; the others name the model's own end
UNSAID = {"stop", "complete"}  # but for these, which may be either
BY_LENGTH = {"length", "max_tokens", "max_length", "max_new_tokens", "max_output_tokens", "model_length"}
BY_FAILURE = {"error", "abort", "error_limit", "error_toxic", "cancelled", "canceled", "timeout"}
BY_OTHERS = {
    *("content_filter", "content_filtered", "safety", "recitation", "blocklist", "prohibited_content"),
    "refusal",
    *("tool_calls", "tool_call", "tool_use", "function_call"),
}
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?")


def end_word(reason: object) -> str:
    """Return a server's reason in the form of the sets above; empty if it is no word."""
    return reason.strip().lower().rpartition(".")[2] if isinstance(reason, str) else ""


def is_known_end(reason: object) -> bool:
    """Return whether a server's reason is one of the sets above."""
    return end_word(reason) in BY_ITSELF | BY_LENGTH | BY_FAILURE | BY_OTHERS


def count_of(number: object) -> int | None:
    """Return a server's count of tokens; None if it is no count."""
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    is_count = isinstance(number, int) and not isinstance(number, bool)
    return number if isinstance(number, int) and is_count and 0 <= number <= MOST_TOKENS else None


def wait_of(headers: Mapping[str, str]) -> float | None:
    """Return the seconds until the server wants to be asked again; None if it does not say so in a readable way.

    It may say a number, or a date as HTTP allows. The result is infinite for a number too large for a float.
    """
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        said = headers.get(name, "").strip()
        if _NUMBER.fullmatch(said):
            return float(said) / unit
    try:
        date = parsedate_to_datetime(headers.get("retry-after", "").strip())
        seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time()
    except (TypeError, ValueError, OverflowError, IndexError):
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def kept(key: str, text: str) -> str:
    """Return a model's text as files can hold it: `?` for half a surrogate pair, which JSON can express and UTF-8 cannot.

    A key that looks like a secret is struck out, in case the server repeated it.
    """
    return _writable(text.replace(key, "[key]") if _is_secret(key) else text)


def without(key: str, text: str) -> str:
    """Return a server's message about a failure in one short line, without the key."""
    plain = " ".join(printable(_writable(text)).split())  # first: what it takes out may stand within the key
    return (plain.replace(key, "[key]") if len(key) >= _SHORTEST_KEY else plain)[:_SHOWN]


def _writable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _is_secret(key: str) -> bool:
    """Return whether a key looks like a secret: long, with letters, and with digits or both cases."""
    has_letters = any(character.isalpha() for character in key)
    is_mixed = any(character.isdigit() for character in key) or key not in (key.lower(), key.upper())
    return len(key) >= SHORTEST_SECRET and has_letters and is_mixed
