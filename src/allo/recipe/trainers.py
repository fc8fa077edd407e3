"""The trainers that a recipe's `improve` may name."""

from dataclasses import dataclass
from typing import Annotated

from allo.recipe.choice import OneOf
from allo.recipe.kinds import REWARDS


@dataclass(frozen=True)
class Trainer:
    """A way to improve. Its function (`module:function`) writes `07-improve`: (recipe, run) -> counts.

    `selects`: it trains the located weights by `improve.loss`, after forgetting. Any other begins at the starting model
    and has a loss of its own. `config` and `parts` are addresses, if it trains through TRL: of TRL's config, and of PEFT's
    adapter or TRL's trainer; `packages` must then be installed. `samples`: it trains on what it samples itself.
    `sees`: kinds of training data; None if `improve.loss` decides.
    """

    name: str
    function: str
    sees: frozenset[str] | None
    selects: bool = False
    has_adapter: bool = False
    samples: bool = False
    config: str = ""
    parts: str = ""
    packages: tuple[str, ...] = ()


def _adapter(name: str) -> Trainer:
    return Trainer(
        name,
        "allo.stages.compared:train_adapter",
        sees=None,
        has_adapter=True,
        config="trl:DPOConfig",
        parts=f"allo.baselines.adapters:{name}",
        packages=("trl", "peft"),
    )


def _on_policy(name: str, config: str, parts: str) -> Trainer:
    return Trainer(
        name,
        "allo.stages.compared:train_on_policy",
        sees=frozenset({REWARDS}),
        samples=True,
        config=config,
        parts=parts,
        packages=("trl",),
    )


TRAINERS = {
    trainer.name: trainer
    for trainer in (
        Trainer("selected", "allo.stages.improve:train_selected", sees=None, selects=True),
        _adapter("lora"),
        _adapter("shira"),
        _on_policy("rloo", "trl:RLOOConfig", "allo.baselines.on_policy:Rloo"),
        _on_policy("grpo", "trl:GRPOConfig", "allo.baselines.on_policy:Grpo"),
    )
}
TrainerName = Annotated[str, OneOf(TRAINERS)]
