"""The errors that users are meant to see, and a phrase of their messages."""

from collections.abc import Sized


class UserError(Exception):
    """Bad input, found at the boundary.

    The message names the file, line or key, says what was found and what to do.
    The command line prints it without a traceback and exits with code 2.
    """


class DivergedError(UserError):
    """The settings were tried, and do not serve: training left the finite numbers, or a later round's model samples nothing
    to make a pair of."""


def and_more(found: Sized, *, named: int = 1) -> str:
    """Return " and N more", to follow the first `named` of what was found; nothing if there are no more."""
    return f" and {len(found) - named} more" if len(found) > named else ""
