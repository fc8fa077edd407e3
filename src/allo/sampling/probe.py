"""A request for one token, which shows that a server answers, takes the key and has the model.

It also finds how many completions the server gives in one request.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from allo.console import say
from allo.sampling.attempts import Failure, attempt
from allo.sampling.replies import Asked, RequestSettings, read, request
from allo.sampling.servers import Server

_TIMEOUT = 30.0  # seconds for one token


async def probe(server: Server, prompt: Asked, settings: RequestSettings, key: str) -> Failure | None:
    """Return why the server does not answer for the model now, or None.

    If it refuses so many completions at once, ask for half as many, and so on; `server.most` becomes what it gives.
    """
    number = server.most
    got = await _one_token(server, prompt, settings, key, number)
    while isinstance(got, Failure) and got.kind == "refused" and number > 1:
        number //= 2
        got = await _one_token(server, prompt, settings, key, number)
    if isinstance(got, Failure):
        if got.kind == "refused":
            refused = f"the server refuses a request of one token ({got.reason}); check sample.model and sample.extra_body"
            return replace(got, reason=refused + await _what_else(server, prompt))
        if got.kind == "model":
            return replace(got, reason=got.reason + await _what_else(server, prompt))
        return got
    reply = read(got, number=number, stop=settings.stop, key=key)
    if isinstance(reply, Failure):  # the server refused nothing
        return reply
    if number < server.most:
        server.most = number
        say(f"{server.endpoint.base_url} refuses more, so it is asked for {number} completions at once")
    return None


async def _one_token(server: Server, prompt: Asked, settings: RequestSettings, key: str, number: int) -> Any:
    """Return the client's reading of the server's answer, or a `Failure`."""
    endpoint = replace(server.endpoint, timeout=min(server.endpoint.timeout, _TIMEOUT))
    asked = request(
        server.client.with_options(timeout=endpoint.timeout),
        endpoint.model,
        prompt,
        replace(settings, max_new_tokens=1),
        first=0,
        number=number,
    )
    return await attempt(asked, endpoint, key)


async def announce(servers: Sequence[Server], *, longest: int) -> None:
    """Warn of servers that accept a model which they do not list, and of servers that cut completions.

    `longest`: tokens of a prompt and its completion. llama.cpp ends a completion when its slot is full, as if
    `max_tokens` had ended it; other servers refuse such a request.
    """
    for server in servers:
        listed = await models(server) if server.is_in else {}
        name, url = server.endpoint.model, server.endpoint.base_url
        if listed and name not in listed:
            say(
                f"{url} answers for the model {name!r}, but lists {', '.join(listed)}: is it the starting model?"
            )
        room = listed[name] if name in listed else min(listed.values(), default=math.inf)
        if room < longest:
            say(
                f"{url} has room for {room} tokens of a prompt and its completion; the longest here may have {longest}, "
                "and is cut there"
            )


async def models(server: Server) -> dict[str, float]:
    """Return the models that the server lists, with the tokens that each has room for; none without a list."""
    import openai

    with suppress(openai.OpenAIError, ValueError, TypeError, AttributeError):  # whatever the server sent
        found = await server.client.with_options(timeout=_TIMEOUT).models.list()
        return {each.id: _room(each) for each in found.data if isinstance(each.id, str)}
    return {}


def _room(model: Any) -> float:
    """Return the tokens in one of llama.cpp's slots; no limit for a server that does not report them."""
    meta = getattr(model, "meta", None)
    room = meta.get("n_ctx") if isinstance(meta, dict) else None
    return room if isinstance(room, int) else math.inf


async def _what_else(server: Server, prompt: Asked) -> str:
    """Return the likely mistake: the model, if the server lists others, otherwise the address or API."""
    names = await models(server)
    if names and server.endpoint.model not in names:
        return f". It lists {', '.join(names)}"
    if isinstance(prompt.prompt, str):
        return (
            ". The prompts are texts and go to /completions; for servers of /chat/completions alone set `chat: true`, "
            "which makes them messages in training, too"
        )
    return ""
