"""The group of processes that one of them has joined: messages, shared work, and one end for all."""

import json
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn, TypeVar

from allo import console
from allo.errors import DivergedError, UserError

Found = TypeVar("Found")

_PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
GRACE = 8.0
"""Seconds in which the other processes must fail as one did; later they wait for it in vain."""
ENDED, FAILED, _SPEAKERS = "ended", "failed", "speakers"
"""Keys of the store: the exit code once all must end, and the last error of a rank other than 0."""


class Group:
    """The joined processes, seen from one of them."""

    def __init__(self, rank: int, size: int, store: Any) -> None:
        self.rank, self.size, self.store = rank, size, store
        self.shared = False  # whether all ranks are at the same work
        self.place = {name: os.environ.pop(name) for name in _PLACE if name in os.environ}
        self.met = 0  # shared work that this rank has ended
        self._calls: Counter[str] = Counter()  # within the work, by kind
        self._broken: UserError | None = None

    def key(self, kind: str) -> str:
        """Return a key that is the same on all ranks for their n-th call of this kind within the work."""
        self._calls[kind] += 1
        return f"{self.met}/{kind}/{self._calls[kind]}"

    def tell(self, message: dict[str, Any], kind: str = "told") -> None:
        """Send a message to all other ranks, as rank 0."""
        self.store.set(self.key(kind), json.dumps(message))

    def hear(self, kind: str = "told") -> dict[str, Any]:
        """Return rank 0's next message, however long it takes."""
        message: dict[str, Any] = json.loads(self._wait(self.key(kind)))
        return message

    def arrive(self) -> None:
        """Wait until all ranks have come here."""
        key = self.key("barrier")
        if self.store.add(key, 1) == self.size:
            self.store.set(f"{key}/all", "")
        self._wait(f"{key}/all")

    def share(self, work: Any, do: Callable[[], Found]) -> Found:
        """Do `work`, which must be JSON, with all ranks, as rank 0; return its result, or raise any rank's `UserError`."""
        if self._broken is not None:
            raise UserError(str(self._broken))
        self.tell({"work": work}, "work")
        return self._meet(do)

    def follow(self, do: Callable[[Any], object]) -> int:
        """Do what rank 0 shares, as another rank, until it ends; return the exit code."""
        while "work" in (message := self.hear("work")):
            try:
                self._meet(partial(do, message["work"]))
            except UserError:
                continue  # rank 0 learns of it, and decides
        return int(message["end"])

    def _meet(self, do: Callable[[], Found]) -> Found:
        """Do the work; rank 0 then waits for all others, and raises the first error."""
        here, mine = self.key("met"), None
        try:
            with self.sharing(True):
                found = do()
        except UserError as error:
            mine = error
        self.store.set(f"{here}/{self.rank}", json.dumps(as_json(mine)))
        others = [f"{here}/{other}" for other in range(1, self.size)]
        if self.rank:
            if mine is not None:
                self.store.set(FAILED, json.dumps({"error": as_json(mine), "met": self.met}))
        elif mine is None:
            for other in map(self._wait, others):
                if found_there := json.loads(other):
                    mine = as_error(found_there)
                    break
        elif not self.all_soon(others):
            self._broken = mine  # the others wait for this rank in the middle of their work
        self.met += 1
        self._calls.clear()
        if mine is not None:
            raise mine
        return found

    @contextmanager
    def sharing(self, shared: bool) -> Iterator[None]:
        """Let this process, and every library, see all ranks inside the block, or itself alone."""
        before = self.shared
        self._see(shared)
        try:
            yield
        finally:
            self._see(before)

    def _see(self, shared: bool) -> None:
        self.shared = shared
        for name, value in self.place.items():
            os.environ.pop(name, None)
            if shared:
                os.environ[name] = value
        if accelerate := sys.modules.get("accelerate.state"):  # it remembers how many processes it found
            accelerate.AcceleratorState._reset_state(reset_partial_state=True)
            accelerate.GradientState._reset_state()

    def all_soon(self, keys: list[str]) -> bool:
        """Return whether all keys are there within a moment: whatever failed here, fails there too."""
        end = time.monotonic() + GRACE
        while time.monotonic() < end:
            if self.store.check(keys):
                return True
            time.sleep(0.05)
        return False

    def _wait(self, key: str) -> str:
        """Return the value of a key once it is there. The wait has no end of its own: `_watch` bounds it."""
        pause = 0.002
        while not self.store.check([key]):
            time.sleep(pause)
            pause = min(2 * pause, 0.2)
        return str(self.store.get(key).decode())

    def claim(self) -> bool:
        """Return whether this rank is the first that has something to say about the end."""
        return bool(self.store.add(_SPEAKERS, 1) == 1)

    def end(self, words: str, code: int = 1) -> NoReturn:
        """End all processes at once, with one message."""
        try:
            if self.claim():
                _shout(words)
            self.store.set(ENDED, str(code))
        except RuntimeError:  # the store has ended
            _shout(words if self.rank == 0 else "")
        os._exit(code)

    def last_words(self, error: BaseException) -> NoReturn:
        """End all processes because of an error that is not the user's; one of them prints it."""
        words = "".join(traceback.format_exception(error))
        if _is_echo(error):
            time.sleep(GRACE)  # the launcher ends this process meanwhile, and says which one was killed
            words = f"{words}allo: another process was lost; start the same command again to resume."
        self.end(words if self.rank == 0 else f"rank {self.rank} of {self.size}:\n{words}")


def as_json(error: UserError | None) -> dict[str, str] | None:
    return None if error is None else {"kind": type(error).__name__, "text": str(error)}


def as_error(error: dict[str, str]) -> UserError:
    return (DivergedError if error["kind"] == DivergedError.__name__ else UserError)(error["text"])


def _is_echo(error: BaseException) -> bool:
    """Return whether an error only says that a connection to another process has ended."""
    from torch.distributed import DistError

    words = ("gloo", "NCCL", "Connection", "connection")
    return isinstance(error, DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def _shout(words: str) -> None:
    """Print a message, also in a process that says nothing."""
    if words:
        sys.stderr.write(f"{console.printable(words).rstrip()}\n")
    sys.stderr.flush()


class State:
    """The group of this process, if it has joined one."""

    group: Group | None = None


state = State()
