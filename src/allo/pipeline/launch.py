"""The start of several processes on this machine, by torch's own torchrun."""

import logging
import os
import signal
from collections.abc import Sequence

from allo.console import say
from allo.errors import UserError
from allo.ranks import launched_ranks

_SHUTDOWN = 10  # seconds that torchrun gives a process before it kills it


def launch(number: int, arguments: Sequence[str]) -> int:
    """Run `allo` with these arguments in `number` processes, and return its exit code."""
    if launched_ranks() > 1:
        raise UserError(
            f"--processes {number}: a launcher has already started {launched_ranks()} processes; leave the option out."
        )
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # the processes say what happened
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // number)))
    options = ["--standalone", "--nproc-per-node", str(number), "--shutdown-timeout", str(_SHUTDOWN)]
    try:
        torchrun.run(torchrun.parse_args([*options, "--module", "allo", *arguments]))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return int(failure.exitcode)
        name = signal.Signals(-failure.exitcode).name
        say(
            f"allo: process {failure.global_rank} of {number} was ended by {name}, perhaps for lack of memory; start the "
            "same command again to resume."
        )
        return 1
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0
