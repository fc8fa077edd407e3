"""A recipe's `compare` block: the methods to compare, their seeds, and their tuning."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from allo.recipe.numbers import Positive, Seed, SetName, TimesOrZero
from allo.recipe.sources import Block, EvaluationSet


class Method(Block):
    """One method, as changes to the recipe."""

    like: SetName | None = None
    """Another method whose changes, scale and settings this one inherits."""
    set: dict[str, Any] = {}
    """Recipe keys, dotted, and their values; null leaves a stage out."""
    scale: Positive | None = None
    """The method's learning rates are `compare.rates` times this; 1 unless `like` gives another."""
    settings: list[dict[str, Any]] | None = None
    """The method's own settings, tried at its best learning rate or at the `rate` that one names. Without any, more
    rates are tried."""
    tuned_as: SetName | None = None
    """Use the tuned settings of that method instead of tuning this one."""


class Compare(Block):
    """Methods trained from the same samples, pairs and scores, tuned alike and tested on the same problems."""

    validation: EvaluationSet
    """The problems on which learning rates and settings are chosen."""
    rates: Annotated[list[Positive], Field(min_length=1)] = [0.25, 0.5, 1.0, 2.0, 4.0]
    """Factors on the recipe's own learning rates of forgetting and improving, for every method."""
    extra_trials: TimesOrZero = 3
    """Trials of each method after its rates, on its own settings or further rates."""
    beyond: TimesOrZero = 3
    """Most further trials beyond a best rate that is the highest or lowest tried."""
    tuning_seeds: Annotated[list[Seed], Field(min_length=1)] = [1000]
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0, 1, 2, 3, 4]
    resample: bool = False
    """Let each seed draw its own samples, pairs, importance and scores; otherwise all share those of `data_seed`."""
    reference: SetName = "allo"
    """The method that the others are compared with."""
    methods: dict[SetName, Method] = {}
    """Methods besides the known ones, or replacing them."""
    run: list[SetName] = []
    """The methods to compare; if empty, those of `methods`; if that is empty too, all known ones."""

    @model_validator(mode="after")
    def _seeds_are_apart(self) -> "Compare":
        both = sorted(set(self.seeds) & set(self.tuning_seeds))
        if both:
            raise ValueError(f"seeds and tuning_seeds share {both}: what is tuned on may not be tested on")
        return self
