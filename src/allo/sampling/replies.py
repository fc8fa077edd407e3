"""The request to a server for one prompt, and the completions in its reply."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from allo.files.artifacts import sha256_text
from allo.files.records import Message
from allo.sampling.attempts import Failure
from allo.sampling.server_words import (
    BY_FAILURE,
    BY_ITSELF,
    BY_LENGTH,
    BY_OTHERS,
    BY_STRING,
    UNSAID,
    count_of,
    end_word,
    kept,
    without,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from openai import AsyncOpenAI

_THOUGHTS = re.compile("think|thought|reasoning|reflect", re.IGNORECASE)
_SEEDS = 2**31  # every server's generator takes seeds below this


@dataclass(frozen=True)
class Asked:
    """A prompt as servers read it: a text for /completions, messages for /chat/completions.

    `num_tokens`: its length in our tokenizer.
    """

    id: str
    prompt: str | list[Message]
    num_tokens: int


@dataclass(frozen=True)
class RequestSettings:
    """The settings of sampling that every request carries; `extra_body` is the recipe's key."""

    num_generations: int
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int
    stop: list[str] = field(default_factory=list)
    extra_body: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """One completion of a reply, without what ended it. `ended`: the server's reason, empty if it gave none.

    `stop`: the stop string, or the id of the token, that ended it; empty for a stop string that is not named. None: the
    model's own end, which `is_guessed` if the server says only that it stopped.
    """

    text: str
    finished: bool
    ended: str = ""
    stop: str | int | None = None
    is_guessed: bool = False


@dataclass(frozen=True)
class Reply:
    """The completions of a request. `prompt_tokens`: None if the server does not count them; `completion_tokens`: also None
    if it counts those of several choices together."""

    choices: list[Choice]
    prompt_tokens: int | None
    completion_tokens: int | None


def seed_of(seed: int, prompt_id: str, index: int) -> int:
    """Return a request's seed. It follows from the first completion asked for, not from the server or the time."""
    return int(sha256_text(f"seed {seed}, prompt {prompt_id}, completion {index}")[:16], 16) % _SEEDS


def request(
    client: "AsyncOpenAI", model: str, asked: Asked, settings: RequestSettings, *, first: int, number: int
) -> "Awaitable[Any]":
    """Return the client's call for completions `first` to `first + number - 1` of a prompt."""
    said: dict[str, Any] = {
        "model": model,
        "n": number,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_tokens": settings.max_new_tokens,
        "seed": seed_of(settings.seed, asked.id, first),
        "extra_body": settings.extra_body,
    }
    if settings.stop:
        said["stop"] = settings.stop
    if isinstance(asked.prompt, str):
        return client.completions.create(prompt=asked.prompt, **said)
    # A mapping in the API's own form, whose roles the client's types know only by name.
    messages: Any = asked.prompt
    return client.chat.completions.create(messages=messages, **said)


def read(got: Any, *, number: int, stop: Sequence[str], key: str) -> Reply | Failure:
    """Return at most `number` completions of a server's answer, from which the client builds its objects unchecked.

    A text is cut before the first stop string, which some servers leave in it. A choice is no completion if it has no
    text, if calls of tools stand beside its text, or if something else than the model ended it (a filter, an abort). One that ended for an unknown reason is
    unfinished, and no completion if its text is blank. A reply without completions is a failure, as is one that holds
    parts of completions. A `Failure` is returned as it is.
    """
    if isinstance(got, Failure):
        return got
    found = getattr(got, "choices", None)
    if not isinstance(found, list):
        found = []
    if any(_lacks_thoughts(each) for each in found):
        return Failure(
            "refused",
            "the server gives thoughts apart from the text, and completions are wanted whole: set sample.api to "
            "completions, or start it without such a parser",
        )
    read_choices = [_choice(each, stop, key) for each in found]
    choices = [each for each in read_choices if each is not None][:number]
    if not choices:
        ended = [str(getattr(each, "finish_reason", None)) for each in found]
        shown = got if isinstance(got, str) else f"ended by {', '.join(ended)}" if ended else "no choices"
        return Failure("garbled", without(key, f"a reply without a completion: {shown}"))
    usage = getattr(got, "usage", None)
    tokens = _count(usage, "completion_tokens") if len(read_choices) == 1 else None
    return Reply(choices, _count(usage, "prompt_tokens"), tokens)


def _lacks_thoughts(choice: Any) -> bool:
    """Return whether a field beside the text has thoughts; each server names it differently."""
    fields = _fields(getattr(choice, "message", None)) | _fields(choice)
    return any(value for name, value in fields.items() if _THOUGHTS.search(name))


def _fields(read: Any) -> dict[str, Any]:
    """Return the fields of a client's object, including those that only this server has."""
    return {**getattr(read, "__dict__", {}), **(getattr(read, "model_extra", None) or {})}


def _choice(choice: Any, stop: Sequence[str], key: str) -> Choice | None:
    message = getattr(choice, "message", None)
    text = getattr(choice, "text", None) if message is None else getattr(message, "content", None)
    reason = getattr(choice, "finish_reason", None)
    word = end_word(reason)
    if not isinstance(text, str) or word in BY_FAILURE | BY_OTHERS:
        return None
    if any(value for name, value in _fields(message).items() if name in BY_OTHERS):
        return None  # a call beside the text, whatever the server says of its end
    if not text.strip() and word not in BY_ITSELF | BY_LENGTH:
        return None
    begins = {string: text.find(string) for string in stop if string in text}
    first = min(begins, key=lambda string: (begins[string], -len(string)), default=None)
    found, is_guessed = (first, False) if first is not None else _stop_of(choice, word, stop)
    return Choice(
        text=kept(key, text[: begins.get(first or "")]),
        finished=first is not None or word in BY_ITSELF,
        ended=without(key, reason) if isinstance(reason, str) else "",
        stop=found,
        is_guessed=is_guessed,
    )


def _stop_of(choice: Any, word: str, stop: Sequence[str]) -> tuple[str | int | None, bool]:
    """Return what ended a completion if its text does not show it (`Choice.stop`), and whether that is a guess.

    `word` is the server's finish reason. Some servers name the end in a field of the choice: `stop_reason` (vLLM), `matched_stop` (SGLang).
    """
    said = {name: value for name, value in _fields(choice).items() if "stop" in name}
    named = [value for value in said.values() if value in stop or type(value) is int]
    if named and word in BY_ITSELF:
        return named[0], False
    if word in BY_STRING:
        return (stop[0] if len(stop) == 1 else ""), False
    return None, bool(stop) and not said and word in UNSAID


def _count(usage: Any, name: str) -> int | None:
    return count_of(getattr(usage, name, None))
