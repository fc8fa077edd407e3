"""What is asked of a server for one prompt, and what of its reply is a completion."""

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
_SEEDS = 2**31  # what every server's generator takes


@dataclass(frozen=True)
class Asked:
    """A prompt as servers read it: a text for /completions, messages for /chat/completions.

    `num_tokens`: those that our tokenizer makes of it.
    """

    id: str
    prompt: str | list[Message]
    num_tokens: int


@dataclass(frozen=True)
class RequestSettings:
    """How completions are drawn, as every request says it; `extra_body` as the recipe's key."""

    num_generations: int
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int
    stop: list[str] = field(default_factory=list)
    extra_body: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """One completion of a reply, without what ended it. `ended`: the server's reason, empty without a word of it.

    `stop`: the stop string, or the id of the token, that ended it; empty for a stop string without its name. None: the
    model's own end, which `is_guessed` if the server says only that it stopped.
    """

    text: str
    finished: bool
    ended: str = ""
    stop: str | int | None = None
    is_guessed: bool = False


@dataclass(frozen=True)
class Reply:
    """`prompt_tokens`: None where the server counts none; `completion_tokens`: also where it counts several choices'."""

    choices: list[Choice]
    prompt_tokens: int | None
    completion_tokens: int | None


def seed_of(seed: int, prompt_id: str, index: int) -> int:
    """A request's seed: that of the first completion that it asks for, whatever server it goes to and when."""
    return int(sha256_text(f"seed {seed}, prompt {prompt_id}, completion {index}")[:16], 16) % _SEEDS


def request(
    client: "AsyncOpenAI", model: str, asked: Asked, settings: RequestSettings, *, first: int, number: int
) -> "Awaitable[Any]":
    """The client's call for completions `first` to `first + number - 1` of a prompt."""
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
    # A mapping of the API's own form: the client's types know the roles by name.
    messages: Any = asked.prompt
    return client.chat.completions.create(messages=messages, **said)


def read(got: Any, *, number: int, stop: Sequence[str], key: str) -> Reply | Failure:
    """At most `number` completions of what the client made of the server's answer; it builds its objects from whatever
    came.

    A text is cut before the first stop string, which some servers leave in it. A choice without text, or one
    that something else than the model ended (a filter, an abort), is none; one that ended for a reason that we do not
    know is unfinished, and none without text; a reply without any is a failure, as is one
    of parts of completions, and a failure stays what it is.
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
    """Whether a field beside the text has thoughts: each server has a name of its own for it."""
    fields = _fields(getattr(choice, "message", None)) | _fields(choice)
    return any(value for name, value in fields.items() if _THOUGHTS.search(name))


def _fields(given: Any) -> dict[str, Any]:
    """The fields of an object of the client's, with those that only this server has."""
    return {**getattr(given, "__dict__", {}), **(getattr(given, "model_extra", None) or {})}


def _choice(choice: Any, stop: Sequence[str], key: str) -> Choice | None:
    message = getattr(choice, "message", None)
    text = getattr(choice, "text", None) if message is None else getattr(message, "content", None)
    reason = getattr(choice, "finish_reason", None)
    word = end_word(reason)
    if not isinstance(text, str) or word in BY_FAILURE | BY_OTHERS:
        return None
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
    """What ended a completion whose text does not show it, as in `Choice`, and whether that is a guess.

    Servers that say more than a word name it in a field of the choice: `stop_reason` (vLLM), `matched_stop` (SGLang).
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
