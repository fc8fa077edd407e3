"""The settings in which a stage on record differs from the one that is to run."""

from collections.abc import Iterator, Mapping
from typing import Any

_SHOWN = 3


def why_again(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return why a finished stage runs again, from its settings then and now."""
    changed = list(_changes(before, now))
    if not changed:
        return "its input has changed"
    more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    return f"{'; '.join(changed[:_SHOWN])}{more}"


def _changes(before: Any, now: Any, key: str = "") -> Iterator[str]:
    """Yield each key with its value then and now; a key that one side lacks is null there."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in [*before, *(name for name in now if name not in before)]:
            yield from _changes(before.get(name), now.get(name), f"{key}.{name}" if key else name)
    elif before != now:
        yield f"{key} was {_value(before)}, now {_value(now)}"


def _value(value: Any) -> str:
    return "null" if value is None else str(value)
