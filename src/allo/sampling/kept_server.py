"""A server that ends with the process that asked for it, however that one ends; run as a script, with the server's command.

The asking process holds this one's standard input. Once that closes, also by a kill, the server and all that it has started end.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

_GRACE = 10.0  # seconds that a server has to end by itself


def main() -> None:
    """Run the server until it ends or the input closes; leave with its exit code."""
    server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=_end_with_input, args=(server.pid,), daemon=True).start()
    code = server.wait()
    _end(server.pid, signal.SIGKILL)  # what it left behind
    sys.exit(abs(code))


def _end_with_input(group: int) -> None:
    os.read(0, 1)  # until it closes: nothing is ever written there
    _end(group, signal.SIGTERM)
    time.sleep(_GRACE)
    _end(group, signal.SIGKILL)


def _end(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


if __name__ == "__main__":
    main()
