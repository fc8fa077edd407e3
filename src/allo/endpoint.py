"""Questions to a model behind an OpenAI-compatible endpoint: many at once, each reply recorded as it comes.

The key comes from the environment and goes into the request's header alone. What a server says is shown
without it, should the server repeat it.
"""

import asyncio
import os
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from allo.address import why_no_address
from allo.artifacts import ResumableLines, sha256_json
from allo.console import track
from allo.errors import UserError
from allo.records import Message

if TYPE_CHECKING:
    from collections.abc import Mapping

    from openai import AsyncOpenAI

SUFFIX = ".replies"
GIVE_UP_AFTER = 16
"""Requests in a row that fail for good: the server is gone, and asking on would only wait."""
_LONGEST_PAUSE = 8.0  # seconds that the client waits between two attempts, unless the server asks for more
_SHOWN = 300  # characters of what a server says
_SHORTEST_KEY = 8  # characters; a shorter key is not struck out of what a server says of a failure
SHORTEST_SECRET = 16
"""Characters. A shorter key may be a word in a key's place, which stands in good replies, too."""
# Why a text ended, in the servers' words: by itself (the last two are TGI's), by its length, or with the server's work.
BY_ITSELF = {"stop", "eos_token", "stop_sequence"}
BY_LENGTH = {"length"}
BY_FAILURE = {"error", "abort"}
# What servers call an unknown model where they answer 400 rather than 404.
_UNKNOWN_MODEL = {"model_not_found", "invalid_model", "unknown_model"}


@dataclass(frozen=True)
class Endpoint:
    """A server and one of its models. Prices are per million tokens, in any one currency.

    `key_variable`: the environment variable that holds the key. `timeout`: seconds of silence after which an
    attempt is given up; `max_retries`: further attempts after a timeout, a lost connection, 408, 409, 429 and 5xx,
    with exponential backoff or as the server asks.
    """

    base_url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = 8
    timeout: float = 120.0
    max_retries: int = 5
    price_in: float | None = None
    price_out: float | None = None

    @property
    def longest_request(self) -> float:
        """Seconds after which a request is given up with all its attempts, also one whose reply drips."""
        return (self.max_retries + 1) * (self.timeout + _LONGEST_PAUSE)

    @property
    def name(self) -> str:
        """As errors call it."""
        return f"{self.base_url}, model {self.model!r}"


@dataclass(frozen=True)
class Failure:
    """Why a request has no reply, without the key.

    `lost`: the server was not reached, or the connection broke; `late`: it took too long; `throttled`: it is asked too
    often (429); `busy`: it cannot now (408, 409, 5xx); `garbled`: no reply of this API; `refused`: it will not have
    this request; `key`: it refuses the key; `model`: it knows no such model or address. `wait`: seconds after which
    the server wants to be asked again, where it says so.
    """

    kind: Literal["lost", "late", "throttled", "busy", "garbled", "refused", "key", "model"]
    reason: str
    wait: float | None = None

    @property
    def is_of_server(self) -> bool:
        """Whether no other request can do better there."""
        return self.kind in ("key", "model")


@dataclass(frozen=True)
class Question:
    """`id` names it in errors and among the replies."""

    id: str
    messages: list[Message]


@dataclass(frozen=True)
class Reply:
    """`hash`: of the whole request. `finished`: the model ended by itself; tokens are None where none were counted.

    `text` is blank where the model refused, only reasoned, or was filtered. `ended`: why it ended, in the server's word,
    empty where it gave none; None in what was kept before it was recorded.
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
        """Whether its length ended it, and no filter or abort."""
        return not self.finished and (self.ended is None or self.ended in BY_LENGTH)


@dataclass(frozen=True)
class Answers:
    """The replies and the reasons of what failed, both by the question's id; `asked` counts this call's requests."""

    replies: dict[str, Reply]
    failed: dict[str, str] = field(default_factory=dict)
    asked: int = 0

    def counts(self, endpoint: Endpoint) -> dict[str, Any]:
        """Requests and tokens of all replies, and what they cost where both prices are given."""
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

    A question is the same where its messages, the server, the model and the settings are. A reply without text is one:
    asked again until it had some, a model that samples would be chosen from, and the replies would depend on how often
    they were asked for. A request that fails for good is counted and named; it is asked again by the next call.
    `temperature` None leaves it to the server.

    Raises `UserError` without a key or the `openai` package, and where the server refuses the key or does not know
    the model, or `GIVE_UP_AFTER` requests fail in a row. What was answered until then is kept.
    """
    settings = {"max_tokens": max_tokens} | ({} if temperature is None else {"temperature": temperature})
    asked = ["chat", endpoint.base_url, endpoint.model, settings]
    hashes = {each.id: sha256_json([*asked, each.messages]) for each in questions}
    lines = ResumableLines(path, suffix=SUFFIX, in_order=False)  # paid for: a damaged one alone is lost
    known = {row["hash"] for row in lines.rows()}
    todo = [each for each in questions if hashes[each.id] not in known]
    failed = asyncio.run(_ask_all(endpoint, todo, hashes, settings, lines)) if todo else {}
    replies = {row["hash"]: Reply(**row) for row in lines.rows()}
    own = {each.id: replies[hashes[each.id]] for each in questions if hashes[each.id] in replies}
    return Answers({id: replace(reply, id=id) for id, reply in own.items()}, failed, asked=len(todo))


async def _ask_all(
    endpoint: Endpoint,
    questions: Sequence[Question],
    hashes: dict[str, str],
    settings: dict[str, Any],
    lines: ResumableLines,
) -> dict[str, str]:
    """Record the replies in `lines`; the reason of each failure by the question's id."""
    key = _required_key(endpoint)
    failed: dict[str, str] = {}
    in_a_row = 0
    todo = iter(track(questions, "ask", total=len(questions)))

    async def work() -> None:
        nonlocal in_a_row
        for question in todo:  # which all workers share
            reply, reason = await _request(client, endpoint, question, hashes[question.id], settings, key)
            if reply is not None:
                lines.append([reply])
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

    async with open_client(endpoint, key) as client:
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(endpoint.concurrency):
                    workers.create_task(work())
        except ExceptionGroup as several:  # the first ended the others
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
    """One reply, or why there is none. Raises `UserError` where no other request can do better."""
    # A mapping of the API's own form: the client's types know the roles by name.
    messages: Any = question.messages
    asked = client.chat.completions.create(model=endpoint.model, messages=messages, **settings)
    got = await attempt(asked, endpoint, key)
    if not isinstance(got, Failure):
        return _read(got, question, hash, key)
    if got.is_of_server:
        raise UserError(f"{endpoint.name}: {got.reason}.")
    return None, got.reason


async def attempt(request: Awaitable[Any], endpoint: Endpoint, key: str) -> Any:
    """What the client made of the server's answer, or a `Failure`."""
    import openai

    try:
        async with asyncio.timeout(endpoint.longest_request):
            return await request
    except openai.AuthenticationError:
        return Failure(
            "key",
            "the server refuses the key (401); put the right one into the environment variable "
            f"{endpoint.key_variable}",
        )
    except openai.APIStatusError as error:
        said = without(key, error.message)
        if error.status_code == 404 or error.code in _UNKNOWN_MODEL:
            return Failure(
                "model",
                f"the server knows no such model or address ({error.status_code}: {said}); check both; the address "
                "mostly ends with /v1",
            )
        return Failure(
            _kind(error.status_code), f"{error.status_code}: {said}", _wait(error.response.headers)
        )
    except (openai.APITimeoutError, TimeoutError):
        return Failure("late", f"no reply within {endpoint.timeout:g} s")
    except openai.APIConnectionError as error:
        cause = error.__cause__ or error
        return Failure("lost", without(key, f"connection lost: {str(cause) or type(cause).__name__}"))
    except (openai.OpenAIError, ValueError) as error:  # a body that is not JSON, or not the API's
        return Failure("garbled", without(key, f"not a reply of this API: {error}"))


def _kind(status: int) -> Literal["throttled", "busy", "refused"]:
    if status == 429:
        return "throttled"
    return "busy" if status in (408, 409) or status >= 500 else "refused"


def _wait(headers: "Mapping[str, str]") -> float | None:
    """Seconds until the server wants to be asked again, where it says a number."""
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        if headers.get(name, "").replace(".", "", 1).isdigit():
            return float(headers[name]) / unit
    return None


def _read(got: Any, question: Question, hash: str, key: str) -> tuple[Reply | None, str | None]:
    """What a server called a completion, checked: the client builds its objects from whatever came.

    A choice that has no message, but says that something else than the model ended it, is a reply without text: some
    filters leave no more. One that a failure of the server ended before it had text is none, nor is one whose text is
    elsewhere or in another form: it would be kept as blank.
    """
    from openai.types.chat import ChatCompletion, ChatCompletionMessage

    choice = got.choices[0] if isinstance(got, ChatCompletion) and got.choices else None
    message, reason = getattr(choice, "message", None), getattr(choice, "finish_reason", None)
    content = getattr(message, "content", None)
    text, ended = (each if isinstance(each, str) else "" for each in (content, reason))
    is_withheld = message is None and ended not in BY_ITSELF | {""} and not getattr(choice, "text", None)
    if isinstance(got, str):
        shown = got
    elif ended in BY_FAILURE and not text.strip():
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
        finished=ended in BY_ITSELF,
        prompt_tokens=getattr(usage, "prompt_tokens", None),
        completion_tokens=getattr(usage, "completion_tokens", None),
        ended=without(key, ended),
    )
    return reply, None


def open_client(endpoint: Endpoint, key: str) -> "AsyncOpenAI":
    """Raises `UserError` without the `openai` package."""
    require_openai()
    import openai

    return openai.AsyncOpenAI(  # which insists on a key
        api_key=key or "none",
        base_url=endpoint.base_url,
        timeout=endpoint.timeout,
        max_retries=endpoint.max_retries,
    )


def require_openai() -> None:
    """Raises `UserError` without the `openai` package."""
    try:
        import openai  # noqa: F401
    except ImportError as error:
        raise UserError(
            "asking an endpoint needs the `openai` package; install it with `pip install allo-align[server]`."
        ) from error


def check_endpoint(endpoint: Endpoint) -> None:
    """Raises `UserError` for an address that is none or holds a secret, and where the key's variable is not set."""
    if why := why_no_address(endpoint.base_url):
        raise UserError(f"{why}; the key belongs into the environment variable {endpoint.key_variable}.")
    _required_key(endpoint)


def key_of(endpoint: Endpoint) -> str:
    """The key; empty where its variable is not set."""
    return os.environ.get(endpoint.key_variable, "").strip()


def _required_key(endpoint: Endpoint) -> str:
    key = key_of(endpoint)
    if not key:
        raise UserError(
            f"{endpoint.name}: the environment variable {endpoint.key_variable} is not set; put the server's key "
            "into it (any word, where the server asks for none), or name another variable."
        )
    return key


def kept(key: str, text: str) -> str:
    """A model's text as files can hold it: `?` for half a surrogate pair, which JSON can say and UTF-8 cannot.

    Without the key where that is a secret and no word, should the server have repeated it.
    """
    return _writable(text.replace(key, "[key]") if _is_secret(key) else text)


def without(key: str, text: str) -> str:
    """What a server said of a failure, in one short line, without the key."""
    said = text.replace(key, "[key]") if len(key) >= _SHORTEST_KEY else text
    return " ".join(_writable(said).split())[:_SHOWN]


def _writable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _is_secret(key: str) -> bool:
    """Whether a key looks like one: long, and of letters with digits among them or in both cases."""
    has_letters = any(character.isalpha() for character in key)
    is_mixed = any(character.isdigit() for character in key) or key not in (key.lower(), key.upper())
    return len(key) >= SHORTEST_SECRET and has_letters and is_mixed
