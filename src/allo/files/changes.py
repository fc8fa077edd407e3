"""The settings in which two runs, or a stage on record and the one that is to run, differ."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Difference = tuple[str, Any, Any]
"""A dotted key, and its two values."""
_SHOWN = 3
_LONGEST = 60  # characters of a value


def differences(one: Any, other: Any, key: str = "") -> Iterator[Difference]:
    """Yield each dotted key at which two settings differ; a key that one side lacks is None there."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in [*one, *(name for name in other if name not in one)]:
            yield from differences(one.get(name), other.get(name), f"{key}.{name}" if key else name)
    elif one != other:
        yield key, one, other


def why_again(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return why a finished stage runs again, from its settings then and now."""
    return was_and_now(list(differences(before, now))) or "its input has changed"


def was_and_now(changed: Sequence[Difference]) -> str:
    """Return the first differences in words; nothing if there are none."""
    more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    said = (f"{key} was {in_short(one)}, now {in_short(other)}" for key, one, other in changed[:_SHOWN])
    return f"{'; '.join(said)}{more}"


def in_short(value: Any) -> str:
    """Return a setting's value as a recipe may have it; a whole block by that word."""
    if isinstance(value, Mapping):
        return "a block"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
