"""The errors meant for users, and a phrase and a list for their messages."""

from collections.abc import Iterable, Sized


class UserError(Exception):
    """Bad input, found at the boundary.

    The message names the file, line or key, what was found, and what to do. The command line prints it without a
    traceback and exits with code 2.
    """


class DivergedError(UserError):
    """Settings that proved unusable: training gave numbers that are not finite, or a later round's samples made no
    pair."""


def and_more(found: Sized, *, named: int = 1) -> str:
    """Return " and N more", to follow the first `named` items; empty if there are no more."""
    return f" and {len(found) - named} more" if len(found) > named else ""


def refuse(faults: Iterable[str]) -> None:
    """Raise `UserError` with all faults, if there are any, so that they are mended together."""
    found = list(dict.fromkeys(faults))
    if len(found) == 1:
        raise UserError(found[0])
    if found:
        raise UserError(
            "".join([f"{len(found)} settings cannot be honoured:", *(f"\n  {each}" for each in found)])
        )
