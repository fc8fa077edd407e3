"""The recipe's block on evaluation."""

from collections.abc import Iterable
from typing import Any

from pydantic import model_validator

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
from allo.recipe.sources import AUTO, HELD_OUT, Block, EvaluationSet, Kl


def with_held_out(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe's fields with rows held out if they have no evaluation sets. A sharded model answers no prompts.

    Sampled answers to held-out prompts may then be as long as those trained on.
    """
    data, evaluate, sample = fields.get("data"), fields.get("evaluate"), fields.get("sample")
    evaluate = {} if evaluate is None else evaluate
    if not isinstance(data, dict) or not isinstance(evaluate, dict) or evaluate.get("sets"):
        return fields
    if fields.get("shards") is not None and not {"pairs", "feedback"} & data.keys():
        return fields
    held_out = {HELD_OUT: AUTO} if data.get(HELD_OUT) is None else {}
    if isinstance(sample, dict) and "max_new_tokens" in sample:
        evaluate = {"max_new_tokens": sample["max_new_tokens"]} | evaluate
    return fields | {"data": data | held_out, "evaluate": evaluate}


class Evaluate(Block):
    sets: dict[SetName, EvaluationSet] = {}
    """Without any, held-out rows of `data` are measured (`data.held_out`)."""
    num_generations: GenerationsOrZero = 4
    """Sampled completions per prompt; 0 measures greedy accuracy alone."""
    greedy: bool = True
    temperature: Positive = 0.7
    top_p: Share = 0.95
    max_new_tokens: Tokens = 1024
    batch_size: BatchSize = 128
    """Answers that are sampled together. Of held-out answers, at most 64 are read together, and for KL at most 4."""
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
        self.check_measures(self.sets)
        return self

    def check_measures(self, names: Iterable[str]) -> None:
        """Raise `ValueError` for a set to whose prompts no answer is measured."""
        for name in names:
            if not self.greedy and self.generations(name) == 0:
                raise ValueError(
                    f"set {name!r} has no completion to measure: set greedy to true, or num_generations above 0"
                )

    def generations(self, name: str) -> int:
        """Return the number of sampled completions per prompt of a set."""
        own = self.sets[name].num_generations if name in self.sets else None
        return self.num_generations if own is None else own

    @property
    def kl_tokens(self) -> int:
        """Return the longest continuation for measuring KL, in tokens."""
        return (self.kl and self.kl.max_new_tokens) or self.max_new_tokens
