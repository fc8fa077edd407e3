"""Ask a server for one token: it answers, takes the key, and has the model behind the address that the prompts go to."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from allo.console import say
from allo.endpoint import Failure, attempt
from allo.served.replies import Asked, Settings, read, request
from allo.served.servers import Server

_TIMEOUT = 30.0  # seconds for one token


async def probe(server: Server, prompt: Asked, settings: Settings, key: str) -> Failure | None:
    """Why the server does not answer for the model now, or None."""
    endpoint = replace(server.endpoint, timeout=min(server.endpoint.timeout, _TIMEOUT))
    asked = request(
        server.client.with_options(timeout=endpoint.timeout),
        endpoint.model,
        prompt,
        replace(settings, max_new_tokens=1),
        first=0,
        number=1,
    )
    reply = read(await attempt(asked, endpoint, key), number=1, stop=settings.stop, key=key)
    if not isinstance(reply, Failure):
        return None
    if reply.kind == "refused":
        refused = f"the server refuses a request of one token ({reply.reason}); check sample.model and sample.extra_body"
        return replace(reply, reason=refused + await _what_else(server, prompt))
    if reply.kind == "model":
        return replace(reply, reason=reply.reason + await _what_else(server, prompt))
    return reply


async def announce(servers: Sequence[Server]) -> None:
    """Say which servers answer for the model though their lists have other names only."""
    for server in servers:
        names = await models(server) if server.is_in else []
        if names and server.endpoint.model not in names:
            say(
                f"{server.endpoint.base_url} answers for the model {server.endpoint.model!r}, but lists "
                f"{', '.join(names)}: is it the starting model?"
            )


async def models(server: Server) -> list[str]:
    """The names of the models that the server lists; none where it has no list."""
    import openai

    with suppress(openai.OpenAIError, ValueError, TypeError, AttributeError):  # or whatever was sent
        found = await server.client.with_options(timeout=_TIMEOUT).models.list()
        return [each.id for each in found.data]
    return []


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
