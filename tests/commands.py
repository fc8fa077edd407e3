"""Commands in this process, since a new one imports torch first: `allo`, and those that an error prints."""

import shlex
import sys

import pytest

from allo import cli


def run_allo(*arguments: object) -> int:
    """Run `allo` with these arguments, and return its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["allo", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
    return int(end.value.code or 0)


def run_printed(command: str) -> None:
    """Run `python -c CODE ARGUMENTS`, split as a shell splits it."""
    python, option, code, *arguments = shlex.split(command)
    assert (python, option) == ("python", "-c")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["-c", *arguments])
        exec(compile(code, "<printed>", "exec"), {"__name__": "__main__"})
