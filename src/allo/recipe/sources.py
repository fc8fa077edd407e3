"""Where a recipe's prompts and pairs come from."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from allo.recipe.numbers import Count, CountOrZero

TaskName = Literal[
    "planted_flaws",
    "ecqa",
    "qasc",
    "openbookqa",
    "strategyqa",
    "gsm8k",
    "math",
    "mawps",
    "tabmwp",
    "alpaca_eval",
    "arena_hard",
]


class Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Source(Block):
    """Where prompts come from: exactly one of `task`, `file` and `hub`."""

    task: TaskName | None = None
    file: Path | None = None
    """JSONL or Parquet with `prompt, answer?, solution?, choices?, id?`."""
    hub: str | None = None
    split: str = "train"
    order: Literal["given", "shuffled", "shortest"] = "given"
    skip: CountOrZero = 0
    limit: Count | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> "Source":
        origins = [name for name in self._origins() if getattr(self, name) is not None]
        if len(origins) != 1:
            found = " and ".join(origins) or "none"
            raise ValueError(f"needs exactly one of {', '.join(self._origins())}; found {found}")
        return self

    @classmethod
    def _origins(cls) -> tuple[str, ...]:
        return ("task", "file", "hub")


class Data(Source):
    """The problems to align on, or ready preference pairs."""

    pairs: Path | None = None
    """JSONL or Parquet with `prompt, chosen, rejected` (TRL's formats): nothing is sampled."""

    @model_validator(mode="after")
    def _pairs_are_taken_as_they_stand(self) -> "Data":
        if self.pairs is not None and self.order != "given":
            raise ValueError("pairs are taken in the order of their file: remove `order`, or sort the file")
        return self

    @classmethod
    def _origins(cls) -> tuple[str, ...]:
        return ("task", "file", "hub", "pairs")


class Kl(Source):
    """Prompts of another task, on which the distance to the starting model is measured."""

    max_new_tokens: Count | None = None


class EvaluationSet(Source):
    num_generations: CountOrZero | None = None
    """Instead of `evaluate.num_generations`."""
