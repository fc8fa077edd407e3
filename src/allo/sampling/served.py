"""Completion of prompts at servers: every completion once, whatever fails on the way."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from allo.console import bar, say
from allo.errors import UserError
from allo.files.artifacts import ResumableLines
from allo.files.records import Completion
from allo.sampling.attempts import Failure, attempt, pause_before
from allo.sampling.endpoint import Endpoint, key_of, open_client
from allo.sampling.probe import announce, probe
from allo.sampling.questions import GIVE_UP_AFTER, asks_too_long, say_unknown_end
from allo.sampling.replies import Asked, Reply, RequestSettings, read, request
from allo.sampling.servers import Server, Servers

_LOOKED_AT = 8  # prompts whose completions are compared


@dataclass
class Tally:
    """The requests of this process and what they brought."""

    completions: int = 0
    tokens: int = 0
    requests: int = 0
    retries: int = 0
    begin: float = field(default_factory=time.monotonic)

    def rates(self) -> dict[str, float]:
        seconds = max(time.monotonic() - self.begin, 1e-9)
        return {"completions": self.completions / seconds, "tokens": self.tokens / seconds}

    def counts(self) -> dict[str, Any]:
        """Return the manifest's counts of this process alone; all are 0 if an earlier process had left nothing to ask for."""
        return {
            "requests": self.requests,
            "retries": self.retries,
            **{f"{name}_per_second": round(value, 2) for name, value in self.rates().items()},
        }


def complete(
    endpoints: Sequence[Endpoint],
    prompts: Sequence[Asked],
    settings: RequestSettings,
    *,
    lines: ResumableLines,
    patience: float,
    advice: str,
    num_tokens: Callable[[str], int],
) -> dict[str, Any]:
    """Ask for every completion that `lines` lacks; return counts of `lines` and of this process.

    Each reply is a batch of rows there: a `Completion` each, with the server's count of the prompt's `prompt_tokens` and
    the `stop` of its `Choice`. All endpoints share one model and one key. `num_tokens` counts a text's tokens; it is
    needed for replies of several completions, whose tokens servers count together.

    Raises `UserError` without the `openai` package; if no server answers, at the beginning or for `patience` seconds
    (`advice` says what to start); if at the beginning a server refuses the key or does not know the model; and if
    requests fail for good. Answers received until then are kept.
    """
    _check_kept(lines)
    there = Counter(str(row["prompt_id"]) for row in lines.rows())
    todo = [prompt for prompt in prompts if there[prompt.id] < settings.num_generations]
    if not todo:
        return _recorded(lines, prompts) | Tally().counts()
    work = _Work(settings, lines, there, num_tokens, key_of(endpoints[0]), patience)
    try:
        asyncio.run(work.do(todo, endpoints, advice=advice))
    except ExceptionGroup as several:  # the first error ended the other tasks
        raise several.exceptions[0] from None
    if work.failed:
        id, failure = next(iter(work.failed.items()))
        raise UserError(
            f"{len(work.failed)} prompts lack completions; prompt {id}: {failure.reason}. What was answered is kept: "
            "see to it, and start it again."
        )
    return _recorded(lines, prompts) | work.tally.counts()


def _check_kept(lines: ResumableLines) -> None:
    """Raise `UserError` for a row that `complete` did not write: completions are numbered by counting rows."""
    kinds = {"prompt_id": str, "index": int, "text": str, "finished": bool, "num_tokens": int}
    for number, row in enumerate(lines.rows(), start=1):
        wrong = [name for name, kind in kinds.items() if type(row.get(name)) is not kind]
        if wrong:
            raise UserError(
                f"{lines.path}: completion {number} of those that an earlier run kept has no {' or '.join(wrong)} as "
                "allo writes it. Sample again: remove the files in this folder whose names begin like this one's."
            )


def _recorded(lines: ResumableLines, prompts: Sequence[Asked]) -> dict[str, int]:
    """Return the manifest's counts over all processes that wrote the lines.

    `prompts_read_otherwise`: prompts whose tokens a server counts differently. `ends_guessed`: completions for which no
    server said whether a stop string or the model ended them.
    """
    own = {prompt.id: prompt.num_tokens for prompt in prompts}
    rows = list(lines.rows())
    counted = {(row["prompt_id"], row.get("prompt_tokens")) for row in rows}
    return {
        "tokens": sum(row["num_tokens"] for row in rows),
        "ends_guessed": sum(bool(row.get("is_guessed")) for row in rows),
        "prompts_read_otherwise": len({id for id, tokens in counted if tokens not in (None, own.get(id))}),
    }


@dataclass
class _Work:
    """State shared by the requests of one event loop. `there`: how many completions each prompt has."""

    settings: RequestSettings
    lines: ResumableLines
    there: Counter[str]
    num_tokens: Callable[[str], int]
    key: str
    patience: float
    tally: Tally = field(default_factory=Tally)
    failed: dict[str, Failure] = field(default_factory=dict)
    failed_in_a_row: int = 0
    distinct: list[int] = field(default_factory=list)
    unknown_ends: set[str] = field(default_factory=set)

    async def do(self, todo: Sequence[Asked], endpoints: Sequence[Endpoint], *, advice: str) -> None:
        async with AsyncExitStack() as stack:
            # A failed request is tried again at the next server, not at the same one.
            own = [replace(endpoint, max_retries=0) for endpoint in endpoints]
            tokens = self.settings.num_generations * self.settings.max_new_tokens
            clients = [
                await stack.enter_async_context(open_client(each, self.key, tokens=tokens)) for each in own
            ]
            servers = Servers(
                [
                    Server(*each, most=self.settings.num_generations)
                    for each in zip(own, clients, strict=True)
                ],
                probe=lambda server: probe(server, todo[0], self.settings, self.key),
                patience=self.patience,
                advice=advice,
            )
            await servers.check()
            longest = max(prompt.num_tokens for prompt in todo) + self.settings.max_new_tokens
            await announce(servers.all, longest=longest)
            self.tally.begin = time.monotonic()
            missing = sum(self.settings.num_generations - self.there[prompt.id] for prompt in todo)
            done = self.there.total()
            advance = stack.enter_context(bar("sample", total=done + missing, done=done, unit="completion"))
            prompts = iter(todo)
            async with asyncio.TaskGroup() as workers:
                for _ in range(sum(endpoint.concurrency for endpoint in endpoints)):
                    workers.create_task(self._work(prompts, servers, endpoints[0].max_retries, advance))

    async def _work(
        self,
        prompts: Iterator[Asked],
        servers: Servers,
        max_retries: int,
        advance: Callable[[int, str], None],
    ) -> None:
        """Complete one prompt after another, taken from the iterator that all workers share."""
        for prompt in prompts:
            texts: list[str] = []
            while (first := self.there[prompt.id]) < self.settings.num_generations:
                reply = await self._reply(prompt, first, servers, max_retries)
                if isinstance(reply, Failure):
                    self._give_up(prompt, reply)
                    break
                self._record(prompt, first, reply)
                texts += [choice.text for choice in reply.choices]
                rates = " ".join(f"{value:.1f} {name}/s" for name, value in self.tally.rates().items())
                advance(len(reply.choices), rates)
            self._compare(texts)

    async def _reply(self, prompt: Asked, first: int, servers: Servers, max_retries: int) -> Reply | Failure:
        """Ask for a prompt's completions from `first` on, with at most `max_retries` retries."""
        missing = self.settings.num_generations - first
        tried = pauses = 0
        while True:
            server = await servers.next()
            number = min(missing, server.most)
            with servers.done(server):
                asked = request(
                    server.client, server.endpoint.model, prompt, self.settings, first=first, number=number
                )
                got = await attempt(asked, server.endpoint, self.key)
                reply = read(got, number=number, stop=self.settings.stop, key=self.key)
                self.tally.requests += 1
                self.tally.retries += tried > 0
                if isinstance(reply, Reply):
                    server.failed_in_a_row = 0
                    for choice in reply.choices:
                        if not choice.finished:
                            say_unknown_end(server.endpoint, choice.ended, self.unknown_ends)
                    return reply
                servers.failed(server, reply)
            if reply.kind == "refused" and await servers.still_answers(server):
                if server.most < number:  # it was asked for too many
                    continue
                return reply
            if tried == max_retries:
                return replace(reply, reason=asks_too_long(reply, self.patience))
            tried += 1
            if server.is_in:
                await asyncio.sleep(min(pause_before(pauses, reply), self.patience))
                pauses += 1

    def _record(self, prompt: Asked, first: int, reply: Reply) -> None:
        rows = []
        for index, choice in enumerate(reply.choices, first):
            tokens = reply.completion_tokens
            if tokens is None:
                tokens = self.num_tokens(choice.text) + choice.finished
            one = Completion(prompt.id, index, choice.text, choice.finished, tokens)
            own = {"prompt_tokens": reply.prompt_tokens, "stop": choice.stop, "is_guessed": choice.is_guessed}
            rows.append(asdict(one) | own)
        self.lines.append(rows)
        self.there[prompt.id] += len(rows)
        self.failed_in_a_row = 0
        self.tally.completions += len(rows)
        self.tally.tokens += sum(row["num_tokens"] for row in rows)

    def _give_up(self, prompt: Asked, failure: Failure) -> None:
        self.failed[prompt.id] = failure
        self.failed_in_a_row += 1
        if self.failed_in_a_row == GIVE_UP_AFTER:
            raise UserError(
                f"{self.failed_in_a_row} requests failed one after the other, the last with: {failure.reason}. What was "
                "answered is kept: see to the servers, and start it again."
            )

    def _compare(self, texts: list[str]) -> None:
        """Warn once if a server seems to take the most probable token, whatever the temperature."""
        if self.settings.temperature == 0 or len(texts) < 2 or len(self.distinct) == _LOOKED_AT:
            return
        self.distinct.append(len(set(texts)))
        if len(self.distinct) == _LOOKED_AT and set(self.distinct) == {1}:
            say(
                f"The first {_LOOKED_AT} prompts have equal completions each: do the servers sample? "
                "docs/sampling.md says which settings they need."
            )
