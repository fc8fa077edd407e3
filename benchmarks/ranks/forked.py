"""`allo` in one or several processes, forked from one that has imported everything: a start costs no import.

Several are started by torchrun's own agent. One rank may be killed, stopped or made to raise after some seconds.

As a script, it reads one `Start` a line, as JSON, and answers with a line `STATUS SECONDS`.
"""

import dataclasses
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Hurt:
    """An accident of one rank, so many seconds after its start: "kill", "stop" or "raise"."""

    rank: int
    how: str
    after: float


@dataclass(frozen=True)
class Start:
    """One start of `allo` with these arguments, its output in the file `log`."""

    arguments: Sequence[str]
    log: str
    num_ranks: int = 1
    hurt: Hurt | None = None


class PlantedError(BaseException):
    """A fault that no `except Exception` on its way, such as of a library that reads a file, takes for one of its own."""


class Server:
    """The client's side of a process that forks; see `serving`."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def run(self, start: Start) -> tuple[int, float]:
        """Return the exit status and the seconds of one start."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(dataclasses.asdict(start)) + "\n")
        self._process.stdin.flush()
        status, seconds = self._process.stdout.readline().split()
        return int(status), float(seconds)


@contextmanager
def serving() -> Iterator[Server]:
    """Yield a server that ends with the block."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        yield Server(process)
    finally:
        process.communicate(timeout=120)


def main() -> None:
    """Serve until the input ends."""
    import allo.stages

    stages = [f"allo.stages.{module.name}" for module in pkgutil.iter_modules(allo.stages.__path__)]
    for name in (
        "scipy.stats",
        "transformers.models.llama.modeling_llama",
        "allo.cli",
        "allo.pipeline.launch",
        *stages,
    ):
        importlib.import_module(name)
    for line in sys.stdin:
        fields: dict[str, Any] = json.loads(line)
        start = Start(**fields | {"hurt": fields["hurt"] and Hurt(**fields["hurt"])})
        began = time.monotonic()
        if (child := os.fork()) == 0:
            _leave(_logged, start)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status, time.monotonic() - began, flush=True)


def _leave(call: Any, start: Start, *, but: int | None = None) -> None:
    """Leave this process with the status of a call; return after status `but`."""
    status = 3
    try:
        status = call(start)
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if status != but:
            os._exit(status)


def _logged(start: Start) -> int:
    log = os.open(start.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["allo", *start.arguments]
    return _one(start) if start.num_ranks == 1 else _several(start)


def _one(start: Start) -> int:
    from allo.cli import main

    _prepare(start.hurt)
    main()
    return 0


def _several(start: Start) -> int:
    """Run torchrun's agent, which forks the ranks."""
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    from allo.pipeline.launch import OPTIONS, code_of, hush

    hush()
    given = ["--nproc-per-node", str(start.num_ranks), "--start-method", "fork"]
    place = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--rdzv-id", "one"]
    config, _, _ = torchrun.config_from_args(torchrun.parse_args([*OPTIONS, *given, *place, "allo"]))
    try:
        elastic_launch(config, _rank)(start)
    except ChildFailedError as error:
        return code_of(error, start.num_ranks)
    return 0


def _rank(start: Start) -> None:
    mine = start.hurt if start.hurt and start.hurt.rank == int(os.environ["RANK"]) else None
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the agent's handler, which a fork inherits
    _leave(_one, dataclasses.replace(start, hurt=mine), but=0)  # the agent waits for a result


def _prepare(hurt: Hurt | None) -> None:
    """Let the accident happen in time."""
    if hurt is None:
        return

    def fail(number: int, frame: object) -> None:
        raise PlantedError("planted")

    signal.signal(signal.SIGUSR1, fail)
    number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "raise": signal.SIGUSR1}[hurt.how]
    timer = threading.Timer(hurt.after, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    main()
