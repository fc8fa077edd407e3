"""Joining the processes that a launcher has started, and watching them until the end."""

import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any

from allo.console import hushed
from allo.errors import UserError
from allo.ranks import launched_ranks
from allo.ranks.group import ENDED, FAILED, GRACE, Group, state

BEAT = 1.0
"""Seconds between the beats of a process."""
PATIENCE = 15.0
"""Seconds without a beat after which a process counts as lost. torchrun needs up to 30 more to end a stopped one."""
_START = timedelta(minutes=10)
_COLLECTIVE = timedelta(minutes=30)
_ANSWER = timedelta(seconds=10)
_INTERRUPTED = 130


@contextmanager
def joined() -> Iterator[Group | None]:
    """Yield the group of the processes that a launcher has started, None if there is one only; they end together."""
    if launched_ranks() < 2:
        yield None
        return
    (group, store), code, closing = _join(), 1, threading.Event()
    threading.Thread(target=_watch, args=(group, store, closing), daemon=True).start()
    state.group = group
    try:
        with hushed() if group.rank else nullcontext():  # rank 0 speaks
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
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a launcher repeats Ctrl-C
        with suppress(RuntimeError):  # without torchrun, the store ends with rank 0
            _leave(group, code)
        state.group = None


def _leave(group: Group, code: int) -> None:
    """Let all ranks end with rank 0, in order if all is well."""
    if group.rank == 0:
        group.tell({"end": code}, "work")
        if code:  # for those who wait for something else; it has been said what is wrong
            group.claim()
            group.store.set(ENDED, str(code))
            # Without a launcher's, the store ends with this process.
            group.all_soon([f"left/{other}" for other in range(1, group.size)])
    elif code:
        group.store.set(f"left/{group.rank}", "")
    if code == 0:
        import torch.distributed as dist

        group.arrive()
        dist.destroy_process_group()


def _join() -> tuple[Group, Any]:
    """Set up torch's processes, a store for their messages, and a second connection to it for the thread that watches."""
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    has_gpus = torch.cuda.is_available()
    if has_gpus:
        on_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if on_machine > torch.cuda.device_count():
            raise UserError(
                f"{on_machine} processes on this machine, and {torch.cuda.device_count()} GPUs: start as many processes "
                "as GPUs, or hide the GPUs with CUDA_VISIBLE_DEVICES= to use the CPU."
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    (store, rank, size), (watched, *_) = (next(iter(rendezvous("env://", timeout=_START))) for _ in range(2))
    watched.set_timeout(_ANSWER)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if has_gpus else "gloo",
        store=PrefixStore("torch", store),
        rank=rank,
        world_size=size,
        timeout=_COLLECTIVE,
    )
    group = Group(rank, size, PrefixStore("allo", store))
    group.store.set(f"beat/{rank}", "0")
    group.arrive()
    return group, PrefixStore("allo", watched)


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
            ended = store.check([ENDED]) and int(store.get(ENDED))
            failed = json.loads(store.get(FAILED)) if group.rank == 0 and store.check([FAILED]) else None
            beats = store.multi_get([f"beat/{other}" for other in watched])
            lost = 0
        except RuntimeError:
            lost += 1
            if lost == 3 and not closing.is_set():
                group.end("allo: the launcher has ended; start the same command again to resume.")
            continue
        if ended is not False:
            store.set(f"left/{group.rank}", "")
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
