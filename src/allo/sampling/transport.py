"""The HTTP client below `openai`'s: it bounds replies, reads their JSON by our reader, and keeps the key at its server."""

import json
from typing import Any

import openai

from allo.errors import UserError
from allo.files.json_text import parse_json
from allo.sampling.server_words import count_of

BYTES_PER_TOKEN = 4096
"""Far more than any token's text, escaped, with the log-probs of twenty others."""
OVERHEAD = 1 << 20
"""Bytes that any reply may have: lists of models, errors."""
LARGEST = 1 << 28
_MOST_REDIRECTS = 5
_OF_ITS_BODY = {b"content-encoding", b"content-length", b"content-type", b"transfer-encoding"}


class UnreadError(openai.OpenAIError):
    """A reply that is not read, with the reason."""


class RedirectedError(openai.OpenAIError):
    """A redirect that is not followed, with its target."""


def largest_reply(tokens: int) -> int:
    """Return the largest number of bytes that a reply to a request for `tokens` tokens may have."""
    return min(OVERHEAD + tokens * BYTES_PER_TOKEN, LARGEST)


class BoundedClient(openai.DefaultAsyncHttpxClient):
    """A client that reads at most `largest` bytes of a reply, also unpacked, and follows redirects only within the server.

    JSON is passed on as our reader reads it, other text as text.
    """

    def __init__(self, *, largest: int, timeout: float) -> None:
        super().__init__(timeout=timeout)
        self._largest = largest

    # The types belong to the HTTP library that `openai` is built on.
    async def send(
        self, request: Any, *, stream: bool = False, auth: Any = None, follow_redirects: Any = None
    ) -> Any:
        assert auth is None, "the key goes as a header"
        for _ in range(_MOST_REDIRECTS):
            response = await super().send(request, stream=True, follow_redirects=False)
            try:
                whole = await self._whole(response)
            finally:
                await response.aclose()
            if response.next_request is None:
                return whole
            request = _followed(request, response)
        raise RedirectedError(f"the server redirected {_MOST_REDIRECTS} times in a row")

    async def _whole(self, response: Any) -> Any:
        """Return the response with its whole body."""
        largest = self._largest if response.is_success else min(self._largest, OVERHEAD)
        body = bytearray()
        async for piece in response.aiter_bytes():
            body += piece
            if max(len(body), response.num_bytes_downloaded) > largest:
                raise UnreadError(f"more than the {largest:,} bytes that such a reply may have")
        kind, content = self._content(response, bytes(body))
        headers = [(name, value) for name, value in response.headers.raw if name.lower() not in _OF_ITS_BODY]
        return type(response)(
            response.status_code,
            headers=[*headers, (b"content-type", kind.encode())],
            content=content,
            request=response.request,
        )

    def _content(self, response: Any, body: bytes) -> tuple[str, bytes]:
        """Return the kind of the body and the body itself."""
        claims_json = response.headers.get("content-type", "").split(";")[0].strip().lower().endswith("json")
        if body.strip() and (claims_json or body.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[")):
            try:
                value = parse_json(body, place="reply", largest=self._largest, lenient=True)
                return "application/json", json.dumps(_counted(value)).encode()
            except UserError as error:
                if response.is_success:
                    raise UnreadError(str(error)) from error
        return "text/plain; charset=utf-8", body.decode("utf-8", "replace").encode()


def _counted(value: Any) -> Any:
    """Return the JSON of a reply with only valid counts of tokens: the client reads `true` as 1."""
    usage = value.get("usage") if isinstance(value, dict) else None
    if not isinstance(usage, dict):
        return value
    names = ("prompt_tokens", "completion_tokens")
    return value | {"usage": usage | {name: count_of(usage[name]) for name in names if name in usage}}


def _followed(request: Any, response: Any) -> Any:
    """Return the request that a redirect asks for, if it goes to the same server with the same content."""
    following = response.next_request
    if _origin(following.url) != _origin(request.url):
        scheme, host, port = _origin(following.url)
        raise RedirectedError(
            f"the server redirects ({response.status_code}) to another one, {scheme}://{host}:{port}, which would get "
            "the key and the prompts; if it is the right one, give its address"
        )
    if following.method != request.method:
        raise RedirectedError(
            f"the server redirects ({response.status_code}) to {following.url.path}, where the prompts would not be "
            "sent again; give that address"
        )
    return following


def _origin(url: Any) -> tuple[str, str, int]:
    return url.scheme, url.host.lower(), url.port or {"http": 80, "https": 443}.get(url.scheme, 0)
