"""The recipe's block on evaluation."""

from typing import Annotated

from pydantic import Field, model_validator

from allo.recipe.numbers import (
    BatchSize,
    CountOrZero,
    GenerationsOrZero,
    Name,
    Positive,
    SetName,
    Share,
    Tokens,
)
from allo.recipe.sources import Block, EvaluationSet, Kl


class Evaluate(Block):
    sets: Annotated[dict[SetName, EvaluationSet], Field(min_length=1)]
    num_generations: GenerationsOrZero = 4
    """Sampled completions per prompt; 0 measures greedy accuracy alone."""
    greedy: bool = True
    temperature: Positive = 0.7
    top_p: Share = 0.95
    max_new_tokens: Tokens = 1024
    batch_size: BatchSize = 128
    reward_model: Name | None = None
    """Measures the sets whose prompts have no `answer`, instead of `judge.reward_model`: a model trained to please
    one reward model is better measured by another."""
    kl: Kl | None = None
    likelihood_pairs: CountOrZero = 0
    """The number of the run's pairs on which the change in likelihood of chosen and rejected answers is measured."""
    start: bool = True
    """Evaluate the starting model too; its completions are the other models' baseline."""
    forgotten: bool = False
    """Also evaluate the model between the two trainings."""

    @model_validator(mode="after")
    def _every_set_is_measured(self) -> "Evaluate":
        for name in self.sets:
            if not self.greedy and self.generations(name) == 0:
                raise ValueError(
                    f"set {name!r} has no completion to measure: set greedy to true, or num_generations above 0"
                )
        return self

    def generations(self, name: str) -> int:
        """Return the number of sampled completions per prompt of a set."""
        own = self.sets[name].num_generations
        return self.num_generations if own is None else own

    @property
    def kl_tokens(self) -> int:
        """Return the longest continuation for measuring KL, in tokens."""
        return (self.kl and self.kl.max_new_tokens) or self.max_new_tokens
