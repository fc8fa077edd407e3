"""The recipe's block `score`: which scorers, and how their scores become weights."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from allo.recipe.numbers import BatchSize, Number, Place
from allo.recipe.own_code import OwnFunction
from allo.recipe.sources import Block
from allo.recipe.training import ContrastTraining

ScorerName = Literal[
    "implicit",
    "contrastive",
    "right_confidence",
    "advantage",
    "privileged",
    "rewriter",
    "confidence",
    "edit",
    "uniform",
    "random",
]
WeightRule = Literal["indicator", "soft", "as_released", "rlmec"]


class Score(Block):
    """Which tokens of wrong completions are wrong (method.md 1.2 and 4)."""

    scorer: ScorerName | OwnFunction = "implicit"
    """One of the library's, or a function of yours, `file.py:function` (docs/extending.md)."""
    beside: list[ScorerName | OwnFunction] = []
    """Other scorers of the same completions, to compare with; they weigh nothing."""
    rewriter: Place | None = None
    """The folder that `allo rewriter train` wrote, for the scorer `rewriter` (docs/rewriter.md)."""
    weights: WeightRule = "indicator"
    threshold: Annotated[Number, Field(ge=0, le=1)] = 0.5
    """`indicator` marks tokens whose aligned probability lies below it."""
    marked: Literal["all", "first"] = "all"
    """Which marked tokens of a completion keep their weight: all, or the first alone, the cause of what follows."""
    solutions: bool = True
    """Whether scorers are shown gold solutions; if not, they know right samples alone."""
    batch_size: BatchSize = 16
    training: ContrastTraining = ContrastTraining()
    """Of the models of `contrastive`: one on the pairs' chosen answers, which `right_confidence` asks too, and one
    on the rejected."""

    @property
    def sides(self) -> list[str]:
        """The pairs' sides on which a model is trained for the scorers."""
        sides = {"contrastive": ["chosen", "rejected"], "right_confidence": ["chosen"]}
        return max((sides.get(name, []) for name in self.scorers), key=len)

    @property
    def scorers(self) -> list[str]:
        """The scorer whose weights count, then those beside it."""
        return [self.scorer, *self.beside]

    @model_validator(mode="after")
    def _rewriter_is_named(self) -> "Score":
        if "rewriter" in self.scorers and self.rewriter is None:
            raise ValueError(
                "scorer 'rewriter' needs the folder of a rewriter: set score.rewriter (see docs/rewriter.md)"
            )
        return self

    @model_validator(mode="after")
    def _scorers_differ(self) -> "Score":
        twice = next((name for name in self.scorers if self.scorers.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice!r} is named twice in scorer and beside: name each scorer once")
        return self
