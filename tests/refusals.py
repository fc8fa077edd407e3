"""The message of a check that refuses, for tests of what must pass."""

from collections.abc import Callable

from allo.errors import UserError


def refusal(check: Callable[[], object]) -> str | None:
    """Return the message with which `check` refuses, or None if it passes."""
    try:
        check()
    except UserError as error:
        return str(error)
    return None
