"""The recipe's block on sampling: how the starting model's completions are drawn, and by what."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from allo.recipe.address import why_no_address
from allo.recipe.backends import BACKENDS, BackendName
from allo.recipe.numbers import (
    BatchSize,
    Connections,
    Generations,
    Name,
    NotNegative,
    Seconds,
    SecondsOrZero,
    Share,
    TimesOrZero,
    Tokens,
)
from allo.recipe.sources import Block

# What a request says by itself.
_OWN = {"model", "prompt", "messages", "max_tokens", "temperature", "top_p", "n", "seed", "stop", "stream"}


class Servers(Block):
    """Where the starting model is served, and how it is asked: other servers give no other run."""

    base_urls: Annotated[list[str], Field(min_length=1, max_length=1000)]
    """Addresses of the OpenAI-compatible API, mostly ending with /v1; each has the same model."""
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the key; it may be unset where the servers ask for none."""
    concurrency: Connections = 16
    """Requests open at a server, each for all completions of a prompt."""
    timeout: Seconds = 600.0
    """Seconds of silence after which a request is given up and made anew, where possible elsewhere."""
    max_retries: TimesOrZero = 5
    """Further attempts of a request, with growing pauses."""
    patience: SecondsOrZero = 120.0
    """Seconds to wait for a server to come back when none is left."""

    @model_validator(mode="after")
    def _no_secret(self) -> "Servers":
        """A recipe is saved with its run and shown in its report. Raised without the value."""
        wrong = [f"base_urls: {why}" for why in map(why_no_address, self.base_urls) if why]
        if not re.fullmatch("[A-Z_][A-Z0-9_]*", self.key_variable):
            wrong.append(
                "key_variable: give the name of an environment variable, such as OPENAI_API_KEY, not a key"
            )
        if wrong:
            raise PydanticCustomError("secret", "{wrong}", {"wrong": wrong[0]})
        return self


class Sample(Block):
    """Completions of the starting model (method.md section 2)."""

    num_generations: Generations = 10
    temperature: NotNegative = 0.7
    """0 takes the most probable token each time."""
    top_p: Share = 0.95
    max_new_tokens: Tokens = 1024
    """Of a completion, on top of its prompt; below `max_length`, or the longest could not be trained on."""
    batch_size: BatchSize = 128
    """Completions decoded together by `hf`; `vllm` is handed four times as many at a time. Of no account to servers."""
    stop: list[Annotated[str, Field(min_length=1)]] = []
    backend: BackendName = "hf"
    """`hf`: in this process, through transformers. `vllm`: in this process, through vLLM (extra `vllm`). `openai`:
    OpenAI-compatible servers of the starting model (extra `server`; docs/sampling.md)."""
    model: Name | None = None
    """What the servers call the starting model."""
    api: Literal["auto", "completions"] = "auto"
    """`auto`: texts go to /completions, messages to /chat/completions, where the server's own template renders them.
    `completions`: messages go to /completions, too, as our template renders them."""
    extra_body: dict[str, Any] = {}
    """Further fields of each request, such as `{top_k: 0, min_p: 0}` where a server truncates by itself."""
    servers: Servers | None = None

    @model_validator(mode="after")
    def _generations_differ(self) -> "Sample":
        if self.temperature == 0 and self.num_generations > 1:
            raise ValueError(
                f"at temperature 0 all {self.num_generations} completions of a prompt would be the same: "
                "raise temperature, or set num_generations to 1"
            )
        return self

    @model_validator(mode="after")
    def _keys_are_the_backends(self) -> "Sample":
        given: dict[str, Any] = {"model": self.model, "servers": self.servers}
        if BACKENDS[self.backend].asks_servers:
            if missing := [key for key, value in given.items() if value is None]:
                raise ValueError(f"backend {self.backend} asks servers: give {' and '.join(missing)}")
            if own := sorted(_OWN & self.extra_body.keys()):
                raise ValueError(f"extra_body: each request says {', '.join(own)} by itself: remove it there")
            return self
        given |= {"extra_body": self.extra_body or None, "api": None if self.api == "auto" else self.api}
        if unread := [key for key, value in given.items() if value is not None]:
            raise ValueError(
                f"backend {self.backend} asks no server: remove {', '.join(unread)}, or set backend to openai"
            )
        return self

    @property
    def decoding(self) -> dict[str, Any]:
        """How completions are drawn in this process: what `hf.generate` takes."""
        keys = ("num_generations", "temperature", "top_p", "max_new_tokens", "batch_size", "stop")
        return {key: getattr(self, key) for key in keys}

    @property
    def settings(self) -> dict[str, Any]:
        """Return what the completions depend on: not where servers are, nor how they are asked."""
        if BACKENDS[self.backend].asks_servers:
            # An earlier version trained on the end of a turn after a sample that a stop string had ended.
            keeps = {"keeps": "stop"} if self.stop else {}
            return self.model_dump(exclude={"servers", "batch_size"}) | keeps
        # A run whose samples were kept as text alone, by an earlier version, samples again.
        return self.model_dump(exclude={"servers"}) | {"keeps": "token_ids"}
