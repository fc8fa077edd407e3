"""The processes of one command: rank 0 decides, all of them compute, and they end together.

torchrun starts them and tells each its place. They send each other JSON through torch's store, where a wait is as long
as the work takes; each beats there too, so that a process that is lost or stopped is noticed, and none waits for it.
"""

import itertools
import json
import os
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any, NoReturn, TypeVar

from allo import console
from allo.errors import DivergedError, UserError

Found = TypeVar("Found")

BEAT = 1.0
"""Seconds between the beats of a process."""
PATIENCE = 20.0
"""Seconds without a beat after which a process counts as lost. torchrun needs up to 30 more to end a stopped one."""
GRACE = 8.0
"""Seconds in which the other processes must fail as one did; later they wait for it in vain."""
_START = timedelta(minutes=10)
_COLLECTIVE = timedelta(minutes=30)
_ENDED, _FAILED, _SPEAKERS = "ended", "failed", "speakers"
_INTERRUPTED = 130
_PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


class _State:
    """The group of this process, if it has joined one."""

    group: "Group | None" = None


def launched_ranks() -> int:
    """Return the number of processes that torchrun, or another launcher, says that there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Return this process's number on its machine; 0 if it has not joined others."""
    return int(os.environ.get("LOCAL_RANK", "0")) if _State.group else 0


def rank() -> int:
    """Return this process's number among those that work together; 0 outside their shared work."""
    if _State.group is not None:
        return _State.group.rank if _State.group.shared else 0
    return _distributed().get_rank() if _distributed() else 0


def num_ranks() -> int:
    """Return how many processes work together; 1 outside their shared work."""
    if _State.group is not None:
        return _State.group.size if _State.group.shared else 1
    return _distributed().get_world_size() if _distributed() else 1


def joined_group() -> "Group | None":
    """Return the group of processes that this one has joined."""
    return _State.group


def is_joined() -> bool:
    """Return whether this process is one of a command's: their number then changes no result, nor a step's rows."""
    return _State.group is not None


def _distributed() -> Any:
    """Return `torch.distributed` if a script has set up its processes."""
    found = sys.modules.get("torch.distributed")
    return found if found and found.is_available() and found.is_initialized() else None


def from_first(decide: Callable[[], Found]) -> Found:
    """Return rank 0's result on every rank, or raise its `UserError`. The result must be JSON; all ranks must call it."""
    group = _State.group
    if group is None or num_ranks() == 1:
        return decide()
    if group.rank:
        message = group.hear()
        if message["error"]:
            raise _error(message["error"])
        found: Found = message["found"]
        return found
    try:
        found = decide()
    except UserError as error:
        group.tell({"error": _as_json(error)})
        raise
    group.tell({"error": None, "found": found})
    return found


def barrier() -> None:
    """Wait until every rank is here."""
    if _State.group is not None and num_ranks() > 1:
        _State.group.arrive()


def dealt(total: int) -> Iterator[int]:
    """Yield the numbers below `total` that this rank is to work on, each when it is wanted; all ranks must call it.

    A rank that is faster gets more of them, so only what does not depend on the rank may be dealt.
    """
    group = _State.group
    if group is None or num_ranks() == 1:
        yield from range(total)
        return
    key = group.key("dealt")
    while (number := group.store.add(key, 1) - 1) < total:
        yield number


@contextmanager
def alone() -> Iterator[None]:
    """Work as a single process inside the block, also for trainers of other libraries. Other ranks skip it."""
    group, shared = _State.group, num_ranks() > 1
    if group is None or not shared:
        yield
        return
    kept = {name: os.environ.pop(name) for name in _PLACE if name in os.environ}
    group.shared = False
    _forget_accelerate()
    try:
        yield
    finally:
        os.environ.update(kept)
        group.shared = True
        _forget_accelerate()


def by_first(do: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what rank 0 returns, working alone, there; nothing on other ranks, which do not wait for it."""
    if rank():
        return {}
    with alone():
        return do()


def _forget_accelerate() -> None:
    """Let accelerate read the environment again: it remembers how many processes it found."""
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()


class Group:
    """The joined processes, seen from one of them."""

    def __init__(self, rank: int, size: int, store: Any) -> None:
        self.rank, self.size, self.store = rank, size, store
        self.shared = False  # whether all ranks are at the same work
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
        self.shared = True
        try:
            found = do()
        except UserError as error:
            mine = error
        finally:
            self.shared = False
        self.store.set(f"{here}/{self.rank}", json.dumps(_as_json(mine)))
        others = [f"{here}/{other}" for other in range(1, self.size)]
        if self.rank:
            if mine is not None:
                self.store.set(_FAILED, json.dumps({"error": _as_json(mine), "met": self.met}))
        elif mine is None:
            for other in map(self._wait, others):
                if error := json.loads(other):
                    mine = _error(error)
                    break
        elif not self._all_soon(others):
            self._broken = mine  # the others wait for this rank in the middle of their work
        self.met += 1
        self._calls.clear()
        if mine is not None:
            raise mine
        return found

    def _all_soon(self, keys: list[str]) -> bool:
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
            self.store.set(_ENDED, str(code))
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


def _as_json(error: UserError | None) -> dict[str, str] | None:
    return error and {"kind": type(error).__name__, "text": str(error)}


def _error(error: dict[str, str]) -> UserError:
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


@contextmanager
def joined() -> Iterator[Group | None]:
    """Yield the group of the processes that a launcher has started, None if there is one only; they end together."""
    if launched_ranks() < 2:
        yield None
        return
    group, code, closing = _join(), 1, threading.Event()
    threading.Thread(target=_watch, args=(group, _client(), closing), daemon=True).start()
    _State.group = group
    try:
        yield group
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        raise
    except KeyboardInterrupt:
        code = _INTERRUPTED
        raise
    except BaseException as error:
        group.last_words(error)
    finally:
        closing.set()
        if group.rank == 0:
            group.tell({"end": code}, "work")
            if code:  # for those who wait for something else
                group.store.set(_ENDED, str(code))
        if code == 0:
            import torch.distributed as dist

            with suppress(RuntimeError):  # without torchrun, the store ends with rank 0
                group.arrive()
            dist.destroy_process_group()
        _State.group = None


def _join() -> Group:
    """Set up torch's processes, and a store for their messages."""
    import torch
    import torch.distributed as dist

    has_gpus = torch.cuda.is_available()
    if has_gpus:
        on_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if on_machine > torch.cuda.device_count():
            raise UserError(
                f"{on_machine} processes on this machine, and {torch.cuda.device_count()} GPUs: start as many processes "
                "as GPUs, or hide the GPUs with CUDA_VISIBLE_DEVICES= to use the CPU."
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, rank, size = next(iter(dist.rendezvous("env://", timeout=_START)))
    if rank:
        console.say_nothing()
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if has_gpus else "gloo",
        store=dist.PrefixStore("torch", store),
        rank=rank,
        world_size=size,
        timeout=_COLLECTIVE,
    )
    group = Group(rank, size, dist.PrefixStore("allo", store))
    group.store.set(f"beat/{rank}", "0")
    group.arrive()
    return group


def _client() -> Any:
    """Return a second connection to the store, for the thread that watches: a wait blocks the first."""
    import torch.distributed as dist

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.PrefixStore(
        "allo", dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10))
    )


def _watch(group: Group, store: Any, closing: threading.Event) -> None:
    """Beat until the end; end this process if another has ended all, or was lost. Rank 0 watches all, others rank 0."""
    watched = range(1, group.size) if group.rank == 0 else range(1)
    seen: dict[int, tuple[bytes, float]] = {}
    last, lost, failed_at = time.monotonic(), 0, 0.0
    for beat in itertools.count(1):
        if closing.wait(BEAT):
            return
        now = time.monotonic()
        if now - last > PATIENCE / 2:  # this process itself was stopped, perhaps all were
            seen.clear()
        last = now
        try:
            store.set(f"beat/{group.rank}", str(beat))
            ended = store.check([_ENDED]) and int(store.get(_ENDED))
            failed = json.loads(store.get(_FAILED)) if group.rank == 0 and store.check([_FAILED]) else None
            beats = store.multi_get([f"beat/{other}" for other in watched])
            lost = 0
        except RuntimeError:
            lost += 1
            if lost == 3 and not closing.is_set():
                group.end("allo: the launcher has ended; start the same command again to resume.")
            continue
        if ended is not False:
            os._exit(ended)
        for other, value in zip(watched, beats, strict=True):
            if other not in seen or seen[other][0] != value:
                seen[other] = value, now
            elif now - seen[other][1] > PATIENCE and not closing.is_set():
                group.end(
                    f"allo: process {other} of {group.size} has not answered for {PATIENCE:.0f} s: it was stopped, or its "
                    "machine is lost. All processes end; start the same command again to resume."
                )
        if failed is None or failed["met"] < group.met:
            failed_at = now
        elif now - failed_at > GRACE and not closing.is_set():
            group.end(f"allo: {failed['error']['text']}", 2)
