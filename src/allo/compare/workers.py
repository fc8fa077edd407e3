"""Processes that prepare and run trials, with one line for each that ends."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import Any

from allo import console
from allo.compare.trials import Comparison, Preparation, Trial, preparations, prepare, run_trial
from allo.errors import UserError
from allo.recipe import Recipe

Job = tuple[str, Callable[..., None], tuple[Any, ...]]
"""The message for a job, and its call."""


class Workers:
    """A runner of jobs, in several processes or in this one."""

    def __init__(self, comparison: Comparison, pool: Executor | None) -> None:
        self._comparison, self._pool = comparison, pool

    def run(self, trials: Iterable[Trial], base: Recipe) -> None:
        """Run the trials that have no result yet, after the stages that they share."""
        recipes = [(trial, trial.recipe(base)) for trial in trials]
        missing = [each for each in recipes if self._comparison.result(*each) is None]
        waves: list[dict[str, Preparation]] = []
        for _, recipe in missing:
            for depth, preparation in enumerate(preparations(recipe)):
                waves += [{}] if depth == len(waves) else []
                waves[depth].setdefault(preparation.key, preparation)
        for wave in waves:
            self._do([(key, prepare, (self._comparison, one)) for key, one in wave.items()], "preparation")
        self._do(
            [
                (f"{trial.method.name} {trial.name}", run_trial, (self._comparison, trial, recipe))
                for trial, recipe in missing
            ]
        )

    def _do(self, jobs: list[Job], kind: str = "trial") -> None:
        """Run the jobs, and say which of them is at work and which has ended."""
        began = time.monotonic()
        done = console.Work("", kind, len(jobs))

        def ended(what: str) -> None:
            done(1)
            passed = console.span(time.monotonic() - began)
            console.note("compare", f"{kind} {done.done} of {len(jobs)}: {what} (after {passed})")

        if self._pool is None:
            for number, (what, call, arguments) in enumerate(jobs, 1):
                one = console.Among(f"{kind} {number} of {len(jobs)}, {what.split()[0]}", done)
                with console.showing(one), console.hushed(but_progress=True):
                    call(*arguments)
                ended(what)
            return
        with console.showing(done):
            self._in_pool(jobs, ended)

    def _in_pool(self, jobs: list[Job], ended: Callable[[str], None]) -> None:
        assert self._pool is not None
        names: dict[Future[None], str] = {
            self._pool.submit(_quietly, call, arguments): what for what, call, arguments in jobs
        }
        pending = set(names)
        while pending:
            finished, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                try:
                    future.result()  # raises the job's exception
                except BrokenProcessPool as error:
                    raise UserError(
                        f"compare: a worker ended at {names[future]}, perhaps for lack of memory: lower --jobs and "
                        "start it again; finished trials are kept."
                    ) from error
                ended(names[future])


@contextmanager
def workers(comparison: Comparison, *, jobs: int) -> Iterator[Workers]:
    """Yield workers that share the machine's cores and end with the block; an error drops waiting jobs."""
    if jobs == 1:
        yield Workers(comparison, None)
        return
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=_begin, initargs=(threads,)
    ) as pool:
        try:
            yield Workers(comparison, pool)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _begin(threads: int) -> None:
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    import torch

    torch.set_num_threads(min(threads, torch.get_num_threads()))


def _end_with_the_parent() -> None:
    """End this process as soon as its parent has ended for any reason; finished work is kept."""
    parent = parent_process()
    assert parent is not None
    parent.join()  # returns when a pipe that only the parent holds open ends
    os._exit(1)


def _quietly(call: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    with console.hushed():
        call(*arguments)
