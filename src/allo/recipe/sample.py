"""The recipe's block on sampling: the settings and the backend for the starting model's completions."""

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

# Fields that each request sets itself.
_OWN = {"model", "prompt", "messages", "max_tokens", "temperature", "top_p", "n", "seed", "stop", "stream"}


class Servers(Block):
    """The servers of the starting model and the connection settings; changing them does not change the run."""

    base_urls: Annotated[list[str], Field(min_length=1, max_length=1000)]
    """Addresses of the OpenAI-compatible API, usually ending with /v1; all serve the same model."""
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the key; it may be unset if the servers need none."""
    concurrency: Connections = 16
    """Open requests per server, each for all completions of a prompt."""
    timeout: Seconds = 600.0
    """Seconds of silence after which a request is abandoned and sent again, to another server if possible."""
    max_retries: TimesOrZero = 5
    """Further attempts at a request, with growing pauses."""
    patience: SecondsOrZero = 120.0
    """Seconds to wait for a server to come back if none is left."""

    @model_validator(mode="after")
    def _no_secret(self) -> "Servers":
        """Refuse secrets without repeating them: a recipe is saved with its run and shown in its report."""
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
    """Tokens of a completion, in addition to its prompt; below `max_length`, or the longest could not be trained on.
    """
    batch_size: BatchSize = 128
    """Completions decoded together by `hf`; `vllm` receives four times as many at a time. Servers ignore it."""
    stop: list[Annotated[str, Field(min_length=1)]] = []
    backend: BackendName = "hf"
    """`hf` samples in this process through transformers, `vllm` through vLLM (extra `vllm`). `openai` asks
    OpenAI-compatible servers of the starting model (extra `server`; docs/sampling.md)."""
    model: Name | None = None
    """The starting model's name at the servers."""
    api: Literal["auto", "completions"] = "auto"
    """`auto` sends texts to /completions, and messages to /chat/completions, which the server's own template renders.
    `completions` also sends messages to /completions, rendered by our template."""
    extra_body: dict[str, Any] = {}
    """Further fields of each request, such as `{top_k: 0, min_p: 0}` if a server truncates by default."""
    servers: Servers | None = None
    serve: bool | Name = False
    """`true` starts `vllm serve` on the starting model, on all GPUs of this machine, and stops it after sampling. A command
    with the places `{model}`, `{name}`, `{port}` and, if needed, `{gpus}` starts another server."""

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
            if self.serve and self.servers is not None:
                raise ValueError("serve starts the server: remove servers, or serve")
            if self.serve:
                given = {}
            if missing := [key for key, value in given.items() if value is None]:
                raise ValueError(f"backend {self.backend} asks servers: give {' and '.join(missing)}")
            if own := sorted(_OWN & self.extra_body.keys()):
                raise ValueError(f"extra_body: each request says {', '.join(own)} by itself: remove it there")
            return self
        given |= {
            "serve": self.serve or None,
            "extra_body": self.extra_body or None,
            "api": None if self.api == "auto" else self.api,
        }
        if unread := [key for key, value in given.items() if value is not None]:
            raise ValueError(
                f"backend {self.backend} asks no server: remove {', '.join(unread)}, or set backend to openai"
            )
        return self

    @property
    def served_name(self) -> str:
        """Return what servers call the starting model."""
        return self.model or "start"

    @property
    def decoding(self) -> dict[str, Any]:
        """Return the sampling settings that `sampling.generate` takes in this process."""
        keys = ("num_generations", "temperature", "top_p", "max_new_tokens", "batch_size", "stop")
        return {key: getattr(self, key) for key in keys}

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings that completions depend on, without the servers' addresses and connections."""
        if BACKENDS[self.backend].asks_servers:
            # An earlier version trained on the end of a turn even after a stop string.
            keeps = {"keeps": "stop"} if self.stop else {}
            return self.model_dump(exclude={"servers", "serve", "batch_size"}) | keeps
        # An earlier version stored samples as text only; its runs sample again.
        return self.model_dump(exclude={"servers", "serve"}) | {"keeps": "token_ids"}
