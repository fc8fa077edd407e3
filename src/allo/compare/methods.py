"""The compared methods, each as changes to an ALLO recipe (method.md section 5)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from allo.errors import UserError
from allo.recipe.compare import Compare, Method

START = "start"
"""The starting model, evaluated beside the reference method without training."""

# Every weight, every token, no forgetting: the settings shared by all methods without a mask.
_PLAIN: dict[str, Any] = {
    "locate": None,
    "score": None,
    "forget": None,
    "improve.loss": "dpo",
    "improve.anchor": 0.0,
    "improve.density": 1.0,
    "improve.keep": 1.0,
}


def _plain(
    *settings: dict[str, Any], scale: float = 1.0, rounds: int | None = None, **changes: Any
) -> Method:
    """Return a method on every weight; `changes` sets keys of `improve`, `settings` are tuned besides its rate.

    `rounds` replaces the recipe's, for a method that samples while it trains.
    """
    own: dict[str, Any] = {f"improve.{key}": value for key, value in changes.items()}
    own |= {} if rounds is None else {"rounds": rounds}
    tried = [{f"improve.{key}": value for key, value in each.items()} for each in settings]
    return Method(set=_PLAIN | own, scale=scale, settings=tried)


# Two passes instead of one: ALLO passes over its pairs three times, including the warm-up.
_TWICE: dict[str, Any] = {"training.num_train_epochs": 2}

METHODS: dict[str, Method] = {
    "sft": _plain(_TWICE, loss="sft", scale=2.0),
    "rft": _plain(_TWICE, loss="rft", scale=2.0),
    "dpo": _plain({"beta": 0.5}, _TWICE, beta=0.1),
    "ipo": _plain({"beta": 0.5}, _TWICE, loss="ipo", beta=0.1),
    "bco": _plain({"beta": 0.5}, _TWICE, loss="bco", beta=0.1),
    "simpo": _plain({"beta": 10.0}, _TWICE, loss="simpo", beta=2.0),
    "npo": Method(
        set={
            "locate": None,
            "score": {"scorer": "uniform"},
            "forget.density": 1.0,
            "forget.loss": "sequence",
            "forget.beta": 0.1,
            "improve": None,
        },
        scale=0.1,
        settings=[{"forget.beta": 0.5}, {"forget.training.num_train_epochs": 2}],
    ),
    "lora_dpo": _plain({"beta": 0.5}, _TWICE, trainer="lora", beta=0.1, density=0.1, scale=4.0),
    "shira_dpo": _plain({"beta": 0.5}, _TWICE, trainer="shira", beta=0.1, density=0.1, scale=4.0),
    "rloo": _plain({"beta": 0.01}, _TWICE, trainer="rloo", beta=0.1, rounds=1),
    "grpo": _plain({"beta": 0.01}, _TWICE, trainer="grpo", beta=0.1, rounds=1),
    "allo": Method(settings=[{"improve.keep": 1.0}, {"forget.training.num_train_epochs": 2}]),
    "allo_random_mask": Method(like="allo", set={"locate.criterion": "random"}),
}


@dataclass(frozen=True)
class Resolved:
    """A method including what it inherits: dotted keys, a scale, and settings to try."""

    name: str
    changes: Mapping[str, Any]
    scale: float
    settings: tuple[Mapping[str, Any], ...]
    tuned_as: str | None


def chosen(compare: Compare, names: list[str] | None) -> list[Resolved]:
    """Return the methods named, or those of `compare.run`, `compare.methods` or all; the reference comes first.

    Raises `UserError` for an unknown name, and for methods that are `like` each other.
    """
    known = METHODS | compare.methods
    wanted = names or compare.run or list(compare.methods) or list(METHODS)
    resolved = [resolve(name, known) for name in dict.fromkeys(wanted)]
    needed = [method.tuned_as for method in resolved if method.tuned_as]
    resolved += [resolve(name, known) for name in dict.fromkeys(needed) if name not in wanted]
    tuned_as = {method.name: method.tuned_as for method in resolved}
    chain = next((name for name, other in tuned_as.items() if other and tuned_as[other]), None)
    if chain is not None:
        raise UserError(
            f"compare.methods.{chain}.tuned_as: {tuned_as[chain]!r} is not tuned by itself; name one that is."
        )
    return sorted(resolved, key=lambda method: method.name != compare.reference)


def resolve(name: str, known: Mapping[str, Method], seen: tuple[str, ...] = ()) -> Resolved:
    """Return a method with the settings that it inherits through `like`."""
    if name not in known:
        raise UserError(f"compare: unknown method {name!r}; the methods are {', '.join(known)}.")
    if name in seen and known is not METHODS:
        raise UserError(
            f"compare.methods: {' is like '.join((*seen, name))}: a method cannot be like itself."
        )
    method = known[name]
    others = METHODS if method.like == name in METHODS else known  # a recipe's own form of a shipped method
    base = resolve(method.like, others, (*seen, name)) if method.like else Resolved("", {}, 1.0, (), None)
    return Resolved(
        name,
        changes={**base.changes, **method.set},
        scale=base.scale if method.scale is None else method.scale,
        settings=base.settings if method.settings is None else tuple(method.settings),
        tuned_as=method.tuned_as,
    )
