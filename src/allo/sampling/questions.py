"""Questions to a model behind an OpenAI-compatible endpoint: many at once, each reply recorded as it arrives.

A server's words are shown without the key, in case the server repeats it.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allo.console import say, track
from allo.errors import UserError
from allo.files.artifacts import ResumableLines, sha256_json
from allo.files.records import Message
from allo.sampling.attempts import Failure, attempt, pause_before
from allo.sampling.endpoint import Endpoint, open_client, required_key
from allo.sampling.server_words import (
    BY_FAILURE,
    BY_ITSELF,
    BY_LENGTH,
    count_of,
    end_word,
    is_known_end,
    kept,
    without,
)

if TYPE_CHECKING:
    from openai import AsyncOpenAI

SUFFIX = ".replies"
GIVE_UP_AFTER = 16
"""Requests in a row that fail for good: the server is gone, and asking on would only wait."""


@dataclass(frozen=True)
class Question:
    """A question; `id` names it in errors and among the replies."""

    id: str
    messages: list[Message]


@dataclass(frozen=True)
class Reply:
    """A reply. `hash`: of the whole request. `finished`: the model ended by itself. Tokens are None if none were counted.

    `text` is blank if the model refused, only reasoned, or was filtered. `ended`: the server's word for why it ended,
    empty if it gave none; None in replies that were kept before this was recorded.
    """

    id: str
    hash: str
    text: str
    finished: bool
    prompt_tokens: int | None
    completion_tokens: int | None
    ended: str | None = None

    @property
    def is_cut_short(self) -> bool:
        """Return whether its length ended it, rather than a filter or an abort."""
        return not self.finished and (self.ended is None or end_word(self.ended) in BY_LENGTH)


@dataclass(frozen=True)
class Answers:
    """The replies and the reasons of failures, both by the question's id; `asked` counts this call's requests."""

    replies: dict[str, Reply]
    failed: dict[str, str] = field(default_factory=dict)
    asked: int = 0

    def counts(self, endpoint: Endpoint) -> dict[str, Any]:
        """Return the requests and tokens of all replies, and their cost if both prices are given."""
        replies = self.replies.values()
        tokens_in = sum(reply.prompt_tokens or 0 for reply in replies)
        tokens_out = sum(reply.completion_tokens or 0 for reply in replies)
        counts = {
            "replies": len(self.replies),
            "asked": self.asked,
            "failed": len(self.failed),
            "prompt_tokens": tokens_in,
            "completion_tokens": tokens_out,
        }
        if endpoint.price_in is None or endpoint.price_out is None:
            return counts
        return counts | {"cost": (tokens_in * endpoint.price_in + tokens_out * endpoint.price_out) / 1e6}


def ask(
    endpoint: Endpoint,
    questions: Sequence[Question],
    *,
    path: Path,
    max_tokens: int,
    temperature: float | None = None,
) -> Answers:
    """Ask every question to which `<path>.replies` holds no reply yet.

    Two questions are the same if their messages, server, model and settings are. A reply without text counts as a reply:
    asking again until there is some would select among a model's samples, and the replies would depend on how often
    they were requested. A request that fails for good is counted and named; the next call asks it again.
    `temperature` None leaves the temperature to the server.

    Raises `UserError` without a key or the `openai` package, and where the server refuses the key or does not know
    the model, or `GIVE_UP_AFTER` requests fail in a row. What was answered until then is kept.
    """
    settings = {"max_tokens": max_tokens} | ({} if temperature is None else {"temperature": temperature})
    asked = ["chat", endpoint.base_url, endpoint.model, settings]
    hashes = {each.id: sha256_json([*asked, each.messages]) for each in questions}
    lines = ResumableLines(
        path, suffix=SUFFIX, in_order=False
    )  # replies were paid for: a damaged line loses only itself
    replies = _kept_replies(lines)
    todo = [each for each in questions if hashes[each.id] not in replies]
    failed = asyncio.run(_ask_all(endpoint, todo, hashes, settings, lines, replies)) if todo else {}
    own = {each.id: replies[hashes[each.id]] for each in questions if hashes[each.id] in replies}
    return Answers({id: replace(reply, id=id) for id, reply in own.items()}, failed, asked=len(todo))


def _kept_replies(lines: ResumableLines) -> dict[str, Reply]:
    """Return the kept replies by their hash. A line that holds no reply is skipped, so it is asked for again."""
    found = [_kept_reply(row) for row in lines.rows()]
    if unread := found.count(None):
        say(
            f"{lines.path}{SUFFIX}: {unread} of {len(found)} kept replies are not as allo writes them; asked again"
        )
    return {reply.hash: reply for reply in found if reply is not None}


def _kept_reply(row: dict[str, Any]) -> Reply | None:
    texts = all(isinstance(row.get(name), str) for name in ("id", "hash", "text"))
    if not (texts and isinstance(row.get("finished"), bool) and isinstance(row.get("ended"), str | None)):
        return None
    return Reply(
        id=row["id"],
        hash=row["hash"],
        text=row["text"],
        finished=row["finished"],
        prompt_tokens=count_of(row.get("prompt_tokens")),
        completion_tokens=count_of(row.get("completion_tokens")),
        ended=row.get("ended"),
    )


async def _ask_all(
    endpoint: Endpoint,
    questions: Sequence[Question],
    hashes: dict[str, str],
    settings: dict[str, Any],
    lines: ResumableLines,
    replies: dict[str, Reply],
) -> dict[str, str]:
    """Record the replies in `lines` and `replies`; return the reason of each failure by the question's id."""
    key = required_key(endpoint)
    failed: dict[str, str] = {}
    in_a_row = 0
    todo = iter(track(questions, "ask", total=len(questions), unit="question"))
    unknown: set[str] = set()

    async def work() -> None:
        nonlocal in_a_row
        for question in todo:  # all workers share this iterator
            reply, reason = await _request(client, endpoint, question, hashes[question.id], settings, key)
            if reply is not None:
                say_unknown_end(endpoint, reply.ended, unknown)
                lines.append([reply])
                replies[reply.hash] = reply
                in_a_row = 0
                continue
            assert reason is not None
            failed[question.id] = reason
            in_a_row += 1
            if in_a_row == GIVE_UP_AFTER:
                raise UserError(
                    f"{endpoint.name}: {in_a_row} requests failed one after the other, the last with: {reason}. "
                    "What was answered is kept: see to the server, and start it again."
                )

    async with open_client(endpoint, key, tokens=settings["max_tokens"]) as client:
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(endpoint.concurrency):
                    workers.create_task(work())
        except ExceptionGroup as several:  # the first error ended the other tasks
            raise several.exceptions[0] from None
    return failed


async def _request(
    client: "AsyncOpenAI",
    endpoint: Endpoint,
    question: Question,
    hash: str,
    settings: dict[str, Any],
    key: str,
) -> tuple[Reply | None, str | None]:
    """Return one reply, or why there is none. Raises `UserError` if every other request would fail too."""
    # A mapping in the API's own form, whose roles the client's types know only by name.
    messages: Any = question.messages
    ends = time.monotonic() + endpoint.longest_request
    for tried in range(endpoint.max_retries + 1):
        asked = client.chat.completions.create(model=endpoint.model, messages=messages, **settings)
        got = await attempt(asked, endpoint, key, seconds=ends - time.monotonic())
        if not isinstance(got, Failure):
            return _read(got, question, hash, key)
        if got.is_of_server:
            raise UserError(f"{endpoint.name}: {got.reason}.")
        pause = pause_before(tried, got)
        if not got.may_pass or tried == endpoint.max_retries or time.monotonic() + pause > ends:
            break
        await asyncio.sleep(pause)
    return None, asks_too_long(got, endpoint.longest_request)


def asks_too_long(failure: Failure, patience: float) -> str:
    """Return a failure's reason, with the pause that the server asks for if it is longer than `patience`."""
    if failure.wait is None or failure.wait <= patience:
        return failure.reason
    return f"{failure.reason}; it asks to wait {failure.wait:.0f} s, and at most {patience:.0f} s are waited"


def say_unknown_end(endpoint: Endpoint, ended: str | None, said: set[str]) -> None:
    """Say, once for each unknown reason of a server, that a text which ended so counts as unfinished."""
    if ended is None or is_known_end(ended) or ended in said:
        return
    said.add(ended)
    shown = f"with {ended!r}, a word that allo does not know" if ended else "without a word of the reason"
    say(f"{endpoint.base_url} ended a reply {shown}; such replies count as unfinished")


def _read(got: Any, question: Question, hash: str, key: str) -> tuple[Reply | None, str | None]:
    """Check and return a server's completion: the client builds its objects from whatever it received.

    A choice without a message that something else than the model ended is a reply without text, as some filters leave
    no more. It is no reply if a failure of the server ended it before it had text, or if its text is elsewhere or in
    another form: it would be kept as blank.
    """
    from openai.types.chat import ChatCompletion, ChatCompletionMessage

    choices = got.choices if isinstance(got, ChatCompletion) and isinstance(got.choices, list) else []
    choice = choices[0] if choices else None
    message, reason = getattr(choice, "message", None), getattr(choice, "finish_reason", None)
    content = getattr(message, "content", None)
    text, ended = (each if isinstance(each, str) else "" for each in (content, reason))
    is_withheld = (
        message is None and end_word(ended) not in BY_ITSELF | {""} and not getattr(choice, "text", None)
    )
    if isinstance(got, str):
        shown = got.strip() or "nothing"
    elif end_word(ended) in BY_FAILURE and not text.strip():
        shown = f"ended by {ended}"
    elif not isinstance(message, ChatCompletionMessage) and not is_withheld:
        shown = "no message"
    elif not isinstance(content, str | None):
        shown = "content that is no text"
    else:
        shown = ""
    if shown:
        return None, without(key, f"not a model's reply: {shown}")
    usage = got.usage
    reply = Reply(
        id=question.id,
        hash=hash,
        text=kept(key, text),
        finished=end_word(ended) in BY_ITSELF,
        prompt_tokens=count_of(getattr(usage, "prompt_tokens", None)),
        completion_tokens=count_of(getattr(usage, "completion_tokens", None)),
        ended=without(key, ended),
    )
    return reply, None
