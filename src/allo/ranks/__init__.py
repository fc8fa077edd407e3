"""The processes of one command: rank 0 decides, all of them compute, and they end together.

torchrun starts them and tells each its place. They send each other JSON through torch's store, where a wait is as long
as the work takes; each beats there too, so that a process that is lost or stopped is noticed, and none waits for it.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

from allo.errors import UserError
from allo.ranks.group import Group, as_error, as_json, state

Found = TypeVar("Found")


def launched_ranks() -> int:
    """Return the number of processes that torchrun, or another launcher, says that there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Return this process's number on its machine; 0 if it has not joined others."""
    return int(state.group.place.get("LOCAL_RANK", "0")) if state.group else 0


def rank() -> int:
    """Return this process's number among those that work together; 0 outside their shared work."""
    if state.group is not None:
        return state.group.rank if state.group.shared else 0
    return _distributed().get_rank() if _distributed() else 0


def num_ranks() -> int:
    """Return how many processes work together; 1 outside their shared work."""
    if state.group is not None:
        return state.group.size if state.group.shared else 1
    return _distributed().get_world_size() if _distributed() else 1


def joined_group() -> Group | None:
    """Return the group of processes that this one has joined."""
    return state.group


def is_joined() -> bool:
    """Return whether this process is one of a command's: their number then changes no result, nor a step's rows."""
    return state.group is not None


def _distributed() -> Any:
    """Return `torch.distributed` if a script has set up its processes."""
    found = sys.modules.get("torch.distributed")
    return found if found and found.is_available() and found.is_initialized() else None


def from_first(decide: Callable[[], Found]) -> Found:
    """Return rank 0's result on every rank, or raise its `UserError`. The result must be JSON; all ranks must call it."""
    group = state.group
    if group is None or num_ranks() == 1:
        return decide()
    if group.rank:
        message = group.hear()
        if message["error"]:
            raise as_error(message["error"])
        found: Found = message["found"]
        return found
    try:
        found = decide()
    except UserError as error:
        group.tell({"error": as_json(error)})
        raise
    group.tell({"error": None, "found": found})
    return found


def barrier() -> None:
    """Wait until every rank is here."""
    if state.group is not None and num_ranks() > 1:
        state.group.arrive()


def dealt(total: int) -> Iterator[int]:
    """Yield this rank's share of the numbers below `total`, each when the rank asks for it; all ranks must call this.

    A faster rank gets more of them, so the result for a number must not depend on the rank that computes it.
    """
    group = state.group
    if group is None or num_ranks() == 1:
        yield from range(total)
        return
    key = group.key("dealt")
    while (number := group.store.add(key, 1) - 1) < total:
        yield number


@contextmanager
def alone() -> Iterator[None]:
    """Work as a single process inside the block, also for trainers of other libraries. Other ranks skip it."""
    group = state.group
    with group.sharing(False) if group is not None and group.shared else nullcontext():
        yield


def by_first(do: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what rank 0 returns, working alone, there; nothing on other ranks, which do not wait for it."""
    if rank():
        return {}
    with alone():
        return do()
