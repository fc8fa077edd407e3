"""Several servers of one model. A request goes to the server with the fewest open; a dead one is skipped until it is back."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from allo.console import say
from allo.errors import UserError
from allo.sampling.attempts import Failure
from allo.sampling.endpoint import Endpoint

if TYPE_CHECKING:
    from openai import AsyncOpenAI

FAILURES_UNTIL_OUT = 3
"""Requests in a row that a server fails before it is left out. A single lost connection is no sign: a server resets
some when many come at once."""
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0  # seconds before a server that is out is probed, doubled each time


@dataclass(eq=False)
class Server:
    """One server. `most`: completions to ask for in one request. `open`: requests on their way. `reason`: of the last failure.

    `back_at`: while it is out, the time of its next probe, in seconds of the monotonic clock.
    """

    endpoint: Endpoint
    client: "AsyncOpenAI"
    most: int
    open: int = 0
    failed_in_a_row: int = 0
    reason: str = ""
    back_at: float | None = None
    pause: float = _FIRST_PAUSE

    @property
    def is_in(self) -> bool:
        return self.back_at is None


class Servers:
    """The servers of one model, for tasks of one event loop.

    `probe` asks a server for as little as possible, and returns a `Failure` if it does not answer for the model. After
    `patience` seconds without any server `UserError` is raised; `advice` ends its message.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        *,
        probe: Callable[[Server], Awaitable[Failure | None]],
        patience: float,
        advice: str,
    ) -> None:
        self.all = list(servers)
        self._probe = probe
        self._patience = patience
        self._advice = advice
        self._changed = asyncio.Event()
        self._none_since = time.monotonic()

    async def check(self) -> None:
        """Probe all servers at once, before the first request; those that do not answer are tried again later.

        Raises `UserError` if none answers, or if one answers but not for the model, as the mistake is still cheap now.
        Later such a server is skipped like a dead one, until it answers for the model.
        """
        found = await asyncio.gather(*(self._probe(server) for server in self.all))
        for server, failure in zip(self.all, found, strict=True):
            if failure is not None:
                if failure.is_of_server or failure.kind == "refused":
                    raise UserError(f"{server.endpoint.name}: {failure.reason}.")
                self._leave_out(server, failure)
        if not any(server.is_in for server in self.all):
            raise self._nobody("no server answers")

    async def next(self) -> Server:
        """Wait for a server that takes one more request, and count it as open until it is `done`.

        A caller that comes when the probe of a server that is out is due makes that probe first.
        """
        while True:
            now = time.monotonic()
            due = next(
                (server for server in self.all if server.back_at is not None and server.back_at <= now), None
            )
            if due is not None:
                await self._try_again(due)
                continue
            free = [
                server for server in self.all if server.is_in and server.open < server.endpoint.concurrency
            ]
            if free:
                server = min(free, key=lambda server: server.open)
                server.open += 1
                return server
            if not any(server.is_in for server in self.all) and now - self._none_since > self._patience:
                raise self._nobody(
                    f"no server has answered for {self._patience:g} s", "What was answered is kept. "
                )
            await self._change(
                until=min((s.back_at for s in self.all if s.back_at is not None), default=math.inf)
            )

    @contextmanager
    def done(self, server: Server) -> Iterator[None]:
        """End the request that `next` counted as open when the block ends."""
        try:
            yield
        finally:
            server.open -= 1
            self._wake()

    def failed(self, server: Server, failure: Failure) -> None:
        """Count a failure; skip the server from now on if it seems dead or no longer serves the model.

        A server that only throttles is not skipped.
        """
        if failure.kind in ("refused", "throttled"):
            return
        server.failed_in_a_row += 1
        if server.is_in and (failure.is_of_server or server.failed_in_a_row >= FAILURES_UNTIL_OUT):
            self._leave_out(server, failure)

    async def still_answers(self, server: Server) -> bool:
        """Return whether a server that refused a request still answers for the model; skip it from now on if not.

        It has just answered, so a probe that finds it slow or busy proves nothing: it may wait for free slots.
        """
        failure = await self._probe(server)
        if failure is None or not (failure.is_of_server or failure.kind in ("refused", "lost")):
            return True
        if server.is_in:
            self._leave_out(server, failure)
        return False

    def _leave_out(self, server: Server, failure: Failure) -> None:
        server.reason = failure.reason
        server.pause = _FIRST_PAUSE
        server.back_at = time.monotonic() + server.pause
        say(f"{server.endpoint.base_url}: left out for now: {failure.reason}")
        if not any(server.is_in for server in self.all):
            self._none_since = time.monotonic()
        self._wake()

    async def _try_again(self, server: Server) -> None:
        server.back_at = math.inf  # nobody else probes it meanwhile
        failure = await self._probe(server)
        if failure is None:
            server.back_at, server.failed_in_a_row = None, 0
            say(f"{server.endpoint.base_url}: back again")
        else:
            server.reason = failure.reason
            server.pause = min(2 * server.pause, _LONGEST_PAUSE)
            server.back_at = time.monotonic() + server.pause
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed.clear()

    async def _change(self, *, until: float) -> None:
        """Wait until a request ends or a server comes or goes, at most to a time of the monotonic clock."""
        seconds = None if until == math.inf else max(0.0, until - time.monotonic())
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    def _nobody(self, what: str, kept: str = "") -> UserError:
        each = "; ".join(f"{server.endpoint.base_url}: {server.reason}" for server in self.all)
        return UserError(f"{what} ({each}). {kept}{self._advice}")
