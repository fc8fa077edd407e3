"""Users' reward functions in a process of their own, which is stopped if one hangs; it reads and writes JSON lines.

Functions are called as TRL's GRPOTrainer calls them. What they print goes to standard error, and what they read is
empty. `main` is the child's part.
"""

import asyncio
import contextlib
import faulthandler
import inspect
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import IO, Any

from allo.errors import UserError
from allo.recipe.own_code import load_function, own_file

KEY = "judge.function"
ARGUMENTS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""The arguments of a reward function besides the columns of its rows."""
STATE: dict[str, Any] = {
    "epoch": None,
    "global_step": 0,
    "max_steps": 0,
    "num_train_epochs": 0,
    "log_history": [],
}
"""The `trainer_state` of a call outside of training."""


class OwnProcess:
    """A process that has loaded the functions `names`; each request may take `timeout` seconds, and so may loading.

    Use it in a `with` block, which stops it with everything that it started.
    """

    def __init__(self, names: Sequence[str], *, timeout: float) -> None:
        self.names, self.timeout = names, timeout
        self._unread = b""

    def __enter__(self) -> "OwnProcess":
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *self.names],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": paths},
            start_new_session=True,  # with the processes that functions start
        )
        try:
            reply = self._reply(f"loading {', '.join(self.names)}")
            if "error" in reply:
                raise UserError(reply["error"])
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def ask(self, number: int, request: dict[str, Any]) -> dict[str, Any]:
        """Return the reply of function `number`: `rewards`, `log_metric` and `log_extra`; or `error`.

        A reward is a number, None, or the `repr` of anything else. Raises `UserError` if the function hangs or ends
        the process.
        """
        asked = {"function": number, "timeout": self.timeout, **request}
        line = json.dumps(asked, default=_refused).encode() + b"\n"
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # an ended process is reported below
            self._process.stdin.write(line)
            self._process.stdin.flush()
        return self._reply(self.names[number])

    def _reply(self, work: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        file, deadline = self._process.stdout.fileno(), time.monotonic() + self.timeout
        while b"\n" not in self._unread:
            if not select.select([file], [], [], max(0.0, deadline - time.monotonic()))[0]:
                self._stop()
                raise UserError(
                    f"{KEY}: {work} took longer than judge.timeout, {self.timeout:g} seconds, and was stopped. Mend the "
                    "function, raise judge.timeout, or lower judge.batch_size."
                )
            part = os.read(file, 1 << 16)
            if not part:
                raise UserError(f"{KEY}: {work} ended its process (exit status {self._process.wait()}).")
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                assert pipe is not None
                pipe.close()


def _refused(value: object) -> Any:
    raise UserError(
        f"{KEY}: a column holds a {type(value).__name__}, and functions are passed JSON values: write it as text, or "
        "remove the column."
    )


def _answer(replies: IO[str], line: str) -> None:
    replies.write(line + "\n")
    replies.flush()


def main() -> None:
    """Load the functions that the command line names, and answer requests until there are no more."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    try:
        functions = [_loaded(name) for name in sys.argv[1:]]
        _answer(replies, json.dumps({}))
    except UserError as error:
        _answer(replies, json.dumps({"error": str(error)}))
        return
    for line in requests:
        request = json.loads(line)
        # A process whose parent was killed must not hang forever.
        faulthandler.dump_traceback_later(2 * request.pop("timeout"), exit=True)
        try:
            reply = _called(functions[request.pop("function")], **request)
        except UserError as error:
            reply = {"error": str(error)}
        faulthandler.cancel_dump_traceback_later()
        sys.stdout.flush()
        _answer(replies, json.dumps(reply, default=repr))


def _loaded(name: str) -> tuple[str, Callable[..., Any]]:
    """Return a function by its name; it may import modules that lie beside its file, as a script may."""
    path = own_file(name)
    assert path is not None, name
    sys.path.insert(0, str(path.absolute().parent))
    return name, load_function(name, key=KEY)


def _called(
    function: tuple[str, Callable[..., Any]],
    columns: dict[str, list[Any]],
    arguments: dict[str, Any],
    state: dict[str, Any],
) -> dict[str, Any]:
    name, call = function
    logged: dict[str, list[tuple[str, Any]]] = {"log_extra": [], "log_metric": []}
    passed = {
        **columns,
        **arguments,
        "trainer_state": SimpleNamespace(**STATE | state),
        "log_extra": lambda column, values: logged["log_extra"].append((column, list(values))),
        "log_metric": lambda name, value: logged["log_metric"].append((name, float(value))),
    }
    signature = inspect.signature(call)
    if not any(each.kind is each.VAR_KEYWORD for each in signature.parameters.values()):
        passed = {key: value for key, value in passed.items() if key in signature.parameters}
    try:
        signature.bind(**passed)
    except TypeError as error:
        shown = ", ".join([*ARGUMENTS, *sorted(columns)])
        raise UserError(f"{KEY}: {name} cannot be called: {error}. It is passed {shown}.") from error
    returned = call(**passed)
    if inspect.iscoroutine(returned):
        returned = asyncio.run(returned)
    return {"rewards": _plain_rewards(name, returned), **logged}


def _plain_rewards(name: str, returned: Any) -> list[float | str | None]:
    """Return the rewards as JSON values, each that is no number by its `repr`."""
    if isinstance(returned, str | bytes | dict) or not hasattr(type(returned), "__iter__"):
        raise UserError(
            f"{KEY}: {name} returned a {type(returned).__name__}; return a list with one reward a completion."
        )
    return [_plain(each) for each in returned]


def _plain(value: Any) -> float | str | None:
    if value is None:
        return None
    if isinstance(value, str | bytes) or not hasattr(type(value), "__float__"):
        return repr(value)
    try:
        return float(value)  # also NumPy's and torch's numbers
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return repr(value)


if __name__ == "__main__":
    main()
