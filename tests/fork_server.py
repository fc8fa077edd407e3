"""Runs in forked children of one process that has imported everything: a kill costs no second import.

Reads one JSON object a line, `{"arguments": [...], "log": FILE, "after": SECONDS or null}`: runs `allo` with these
arguments, killed after so many seconds. Answers with a line `STATUS SECONDS`; a killed one's status is -9.
"""

import importlib
import json
import os
import pkgutil
import signal
import sys
import threading
import time
import traceback
from typing import Any


def serve() -> None:
    import scipy.stats  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    import allo.cli
    import allo.stages

    for module in pkgutil.iter_modules(allo.stages.__path__):
        importlib.import_module(f"allo.stages.{module.name}")
    for line in sys.stdin:
        request = json.loads(line)
        began = time.monotonic()
        status = _run(request)
        print(status, time.monotonic() - began, flush=True)


def _run(request: dict[str, Any]) -> int:
    child = os.fork()
    if child == 0:
        _be(request)
    timer = threading.Timer(request["after"], os.kill, (child, signal.SIGKILL)) if request["after"] else None
    if timer:
        timer.start()
    # The child stays a zombie until it is waited for a second time, so that its number is nobody else's.
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    if timer:
        timer.cancel()
        timer.join()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _be(request: dict[str, Any]) -> None:
    """The child: `allo`, its output in the log."""
    status = 3
    try:
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv = ["allo", *request["arguments"]]
        from allo.cli import main

        main()
        status = 0
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve()
