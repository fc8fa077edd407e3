"""A server behind an OpenAI-compatible address: its settings, their checks, its key and its client.

The key comes from the environment and goes only into the request's header.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from allo.errors import UserError
from allo.recipe.address import why_no_address

if TYPE_CHECKING:
    from openai import AsyncOpenAI

MOST_AT_ONCE, MOST_RETRIES, LONGEST_TIMEOUT = 4096, 1000, 604_800.0
"""Bounds of an endpoint's settings: open connections, attempts, and seconds (a week)."""
LONGEST_PAUSE = 8.0  # seconds between two attempts, unless the server asks for more


@dataclass(frozen=True)
class Endpoint:
    """A server and one of its models. Prices are per million tokens, in any one currency.

    `key_variable`: the environment variable that holds the key. `timeout`: seconds of silence after which an
    attempt is given up; `max_retries`: further attempts after a timeout, a lost connection, 408, 409, 429 and 5xx,
    with exponential backoff or as the server asks, up to `longest_request` for all of them together.
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
        """Seconds after which a request with all its attempts is given up, even if its reply trickles in."""
        return (self.max_retries + 1) * (self.timeout + LONGEST_PAUSE)

    @property
    def name(self) -> str:
        """The endpoint's name in errors."""
        return f"{self.base_url}, model {self.model!r}"


def open_client(endpoint: Endpoint, key: str, *, tokens: int) -> "AsyncOpenAI":
    """Return a client for requests of at most `tokens` tokens, which makes one attempt at each.

    Raises `UserError` without the `openai` package.
    """
    require_openai()
    import openai

    from allo.sampling.transport import BoundedClient, largest_reply

    return openai.AsyncOpenAI(  # which insists on a key
        api_key=key or "none",
        base_url=endpoint.base_url,
        timeout=endpoint.timeout,
        max_retries=0,
        http_client=BoundedClient(largest=largest_reply(tokens), timeout=endpoint.timeout),
    )


def require_openai() -> None:
    """Raise `UserError` without the `openai` package."""
    try:
        import openai  # noqa: F401
    except ImportError as error:
        raise UserError(
            "asking an endpoint needs the `openai` package; install it with `pip install allo-align[server]`."
        ) from error


def check_endpoint(endpoint: Endpoint) -> None:
    """Raise `UserError` for a bad address, one that holds a secret, settings beyond their bounds, or a missing key."""
    if why := why_no_address(endpoint.base_url):
        raise UserError(f"{why}; the key belongs into the environment variable {endpoint.key_variable}.")
    if not endpoint.model.strip():
        raise UserError(f"{endpoint.base_url}: the model has no name; give the one that the server lists.")
    prices = {name: getattr(endpoint, name) for name in ("price_in", "price_out")}
    bounds = {
        "concurrency": (1, MOST_AT_ONCE),
        "timeout": (0.001, LONGEST_TIMEOUT),
        "max_retries": (0, MOST_RETRIES),
        **{name: (0, 1e9) for name, price in prices.items() if price is not None},
    }
    for name, (least, most) in bounds.items():
        if not least <= getattr(endpoint, name) <= most:  # nan fails too
            raise UserError(f"{name} is {getattr(endpoint, name)}; give a number from {least:g} to {most:g}.")
    required_key(endpoint)


def key_of(endpoint: Endpoint) -> str:
    """Return the key; empty if its variable is not set."""
    return os.environ.get(endpoint.key_variable, "").strip()


def required_key(endpoint: Endpoint) -> str:
    key = key_of(endpoint)
    if not key:
        raise UserError(
            f"{endpoint.name}: the environment variable {endpoint.key_variable} is not set; put the server's key "
            "into it (any word, where the server asks for none), or name another variable."
        )
    return key
