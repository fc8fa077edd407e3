"""JSON values of a known form: checked when read, finite when written, sealed with their own digest."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from allo.errors import DivergedError, UserError

Form = TypeVar("Form")

SEAL = "sha256"
"""The key under which a sealed JSON object holds the digest of its other keys."""
START_AGAIN = "Remove the file to start again."


def checked(value: Any, form: type[Form], *, place: str, advice: str = START_AGAIN) -> Form:
    """Return a JSON value in its form; raise `UserError` if it does not fit. Further keys are ignored."""
    kind: Any = form  # mypy does not accept a type as hashable
    try:
        result: Form = _adapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        found = (
            "" if first["type"] == "missing" else f"; found {json.dumps(first['input'], default=str)[:80]}"
        )
        said = f"`{where}`: {first['msg']}" if where else first["msg"]
        raise UserError(f"{place}: {said}{found}. {advice}".rstrip()) from error
    return result


@cache
def _adapter(form: Any) -> TypeAdapter[Any]:
    return TypeAdapter(form)


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the object with its own digest, by which `unsealed` detects damage that is still valid JSON."""
    return {**value, SEAL: _seal_of(value)}


def unsealed(value: Mapping[str, Any], *, place: str, advice: str = START_AGAIN) -> dict[str, Any]:
    """Return a sealed object without its digest; an object without one passes.

    Raises `UserError` if the digest does not match.
    """
    content = {key: entry for key, entry in value.items() if key != SEAL}
    if SEAL in value and value[SEAL] != _seal_of(content):
        raise UserError(
            f"{place}: damaged, its content does not have the digest under `{SEAL}`. {advice}".rstrip()
        )
    return content


def _seal_of(value: Mapping[str, Any]) -> str:
    as_read = json.loads(json.dumps(value))  # all keys become strings, and sort as such
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def dump_json(value: Any, path: Path, *, indent: int | None = None) -> str:
    """Return the JSON text of a value for `path`. Raises `DivergedError` for NaN and infinite numbers."""
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        where, number = next(_not_finite(value), ("", None))
        if number is None:
            raise
        raise DivergedError(
            f"{path}: not written, `{where}` is {number}. Numbers are no longer finite: lower the learning rate, or "
            "check the data and the model."
        ) from error


def _not_finite(value: Any, where: str = "") -> Iterator[tuple[str, float]]:
    """Yield each NaN and infinite number with its key path."""
    if isinstance(value, float) and not math.isfinite(value):
        yield where, value
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, entry in entries:
        yield from _not_finite(entry, f"{where}.{key}" if where else str(key))
