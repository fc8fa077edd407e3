"""The ways to sample, one record each: recipe, checks, planner and stage derive what they say from here."""

from dataclasses import dataclass
from typing import Annotated

from allo.recipe.choice import OneOf


@dataclass(frozen=True)
class Backend:
    """A way to sample the starting model's completions; functions are named as `module:function`.

    `complete(recipe, run, prompts)` returns their `Completed`. `check(recipe)` raises `UserError` before the first stage
    if it could not. `dealt`: several processes share the prompts; otherwise the first one completes all. `unplanned`: why the planner does not know its memory. `asks_servers`: it reads the keys of servers.
    """

    name: str
    complete: str
    check: str | None = None
    dealt: bool = False
    unplanned: str | None = None
    asks_servers: bool = False


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("hf", complete="allo.sampling.completions:complete_by_hf", dealt=True),
        Backend(
            "vllm",
            complete="allo.sampling.vllm_engine:complete_by_vllm",
            check="allo.sampling.vllm_engine:check_vllm",
            unplanned="for which vLLM takes nine tenths of the device by itself",
        ),
        Backend(
            "openai",
            complete="allo.sampling.at_servers:complete_at_servers",
            check="allo.sampling.at_servers:check_servers",
            unplanned="whose servers have a memory of their own",
            asks_servers=True,
        ),
    )
}
BackendName = Annotated[str, OneOf(BACKENDS)]
