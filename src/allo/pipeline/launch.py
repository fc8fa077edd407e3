"""The start of several processes on this machine, by torch's own torchrun."""

import logging
import os
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING

from allo.console import say
from allo.errors import UserError
from allo.ranks import is_joined

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

OPTIONS = ("--shutdown-timeout", "10")
"""torchrun's options: the seconds that it gives a process before it kills it."""

RESUMES = "start the same command again to resume from the last file saved"


def launch(number: int, arguments: Sequence[str]) -> int:
    """Run `allo` with these arguments in `number` processes, and return its exit code."""
    if is_joined():
        raise UserError(
            f"--processes {number}: a launcher has started several already; leave the option out."
        )
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    hush()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // number)))
    options = [*OPTIONS, "--standalone", "--nproc-per-node", str(number), "--module"]
    try:
        torchrun.run(torchrun.parse_args([*options, "allo", *arguments]))
    except ChildFailedError as error:
        return code_of(error, number)
    except SignalException as error:
        if error.sigval == signal.SIGTERM:  # of Ctrl-C, process 0 says where it stopped
            say(f"allo: ended by SIGTERM; {RESUMES}")
        return 128 + int(error.sigval)
    return 0


def hush() -> None:
    """Let torchrun report no ends: the processes say themselves what happened."""
    for name in ("torch.distributed", "torch.distributed.elastic.agent.server.api", "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def code_of(error: "ChildFailedError", number: int) -> int:
    """Return the exit code of the process that failed first; say which one it was if it could not say anything itself."""
    rank, failure = error.get_first_failure()
    if failure.exitcode > 0:
        return int(failure.exitcode)
    say(
        f"allo: process {rank} of {number} was ended by {signal.Signals(-failure.exitcode).name}, perhaps "
        "for lack of memory; start the same command again to resume."
    )
    return 1
