"""The errors that users are meant to see."""


class UserError(Exception):
    """Bad input, found at the boundary.

    The message names the file, line or key, says what was found and what to do.
    The command line prints it without a traceback and exits with code 2.
    """


class DivergedError(UserError):
    """Training left the finite numbers: the settings were tried, and do not serve."""
