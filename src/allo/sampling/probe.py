"""Ask a server for one token: it answers, takes the key, and has the model behind the address that the prompts go to.

And gives so many completions a request.
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
    """Why the server does not answer for the model now, or None.

    One that refuses so many completions at once is asked for half as many, and so on; `server.most` is what it gives.
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
    """What the client made of the server's answer, or a `Failure`."""
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
    """Say which servers answer for the model though their lists have other names only, and which cut completions.

    `longest`: tokens of a prompt and its completion. llama.cpp ends a completion where its slot is full, as if
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
    """The models that the server lists, with the tokens that each has room for; none where it has no list."""
    import openai

    with suppress(openai.OpenAIError, ValueError, TypeError, AttributeError):  # or whatever was sent
        found = await server.client.with_options(timeout=_TIMEOUT).models.list()
        return {each.id: _room(each) for each in found.data if isinstance(each.id, str)}
    return {}


def _room(model: Any) -> float:
    """What llama.cpp says of its slots; no limit where a server says nothing of the kind."""
    meta = getattr(model, "meta", None)
    room = meta.get("n_ctx") if isinstance(meta, dict) else None
    return room if isinstance(room, int) else math.inf


async def _what_else(server: Server, prompt: Asked) -> str:
    """What may be wrong: the model, where the server lists others; else what the prompts go to."""
    names = await models(server)
    if names and server.endpoint.model not in names:
        return f". It lists {', '.join(names)}"
    if isinstance(prompt.prompt, str):
        return (
            ". The prompts are texts and go to /completions; for servers of /chat/completions alone set `chat: true`, "
            "which makes them messages in training, too"
        )
    return ""
