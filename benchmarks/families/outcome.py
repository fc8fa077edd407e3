"""The outcome of a check of a family: it holds, it was refused, a figure is wrong, or something crashed."""

import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from allo.errors import UserError

Kind = Literal["ok", "refused", "wrong", "crash", "unreached"]
_INTERESTING = ("/src/allo/", "/transformers/", "/peft/")


@dataclass(frozen=True)
class Outcome:
    """`what`: a remark if it holds, the reason of a refusal, the figure that is wrong, or the exception of a crash.

    `place`: the code that refused or crashed.
    """

    kind: Kind
    what: str = ""
    place: str = ""

    @property
    def holds(self) -> bool:
        return self.kind == "ok"

    def as_json(self) -> dict[str, str]:
        return asdict(self)


class WrongError(Exception):
    """A figure that differs from the reference's."""


def require(holds: bool, what: str) -> None:
    """Raise `WrongError` unless a property holds."""
    if not holds:
        raise WrongError(what)


def outcome(check: Callable[..., str], *given: Any) -> Outcome:
    """Run one check and return its outcome; a check that holds returns a remark or ""."""
    try:
        return Outcome("ok", check(*given))
    except WrongError as error:
        return Outcome("wrong", str(error))
    except UserError as error:
        return Outcome("refused", _line(str(error)), _place(error))
    except Exception as error:
        return Outcome("crash", f"{type(error).__name__}: {_line(str(error))}", _place(error))


def _line(text: str) -> str:
    """Return the first lines of a message as one, without this machine's folders."""
    parts = [part.rsplit("/", 1)[-1] if part.startswith("/") else part for part in text.split()]
    return " ".join(parts)[:300]


def _place(error: Exception) -> str:
    """Return the last places in allo and in the libraries below it, as FILE:LINE."""
    frames = traceback.extract_tb(error.__traceback__)
    found: dict[str, str] = {}
    for frame in frames:
        for mark in _INTERESTING:
            if mark in frame.filename:
                found[mark] = f"{Path(frame.filename).parent.name}/{Path(frame.filename).name}:{frame.lineno}"
    return ", ".join(found.values())
