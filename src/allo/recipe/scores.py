"""The recipe's block `score`, and the table of scorers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from allo.recipe.choice import OneOf
from allo.recipe.kinds import PAIRS, RIGHT, SOLUTIONS, WRONG
from allo.recipe.numbers import BatchSize, Number, Place
from allo.recipe.sources import Block
from allo.recipe.training import ContrastTraining


@dataclass(frozen=True)
class Scorer:
    """A scorer of tokens. Its function, `module:function`, is one of those of `allo.tokens.scorers` or alike.

    `needs`: the models that it asks. `model` is the starting model; `warmup` is the warm-up's, `chosen` and `rejected` are
    the start fine-tuned on one side of the pairs; `rewriter` stands in the starting model's place. `sees`: kinds of
    training data beside the wrong completions. `logratios`: its scores are log-ratios, not probabilities.
    `prompts_with_solution`: it asks under longer prompts, which show the solution. `of_prompt`: it needs another answer to
    the same prompt, or its solution, which labelled feedback lacks.
    """

    name: str
    function: str
    needs: Sequence[Literal["model", "warmup", "chosen", "rejected", "rewriter"]]
    sees: frozenset[str]
    logratios: bool = False
    prompts_with_solution: bool = False
    of_prompt: bool = False

    @property
    def weights(self) -> list[str]:
        """The models that it asks beside the starting model; it runs in fp32, and gets them as `Context.weights`."""
        return [model for model in self.needs if model not in ("model", "rewriter")]

    @property
    def needs_run(self) -> bool:
        """Whether it asks another model than the starting model, or reads the prompt's other wrong samples."""
        return any(model != "model" for model in self.needs) or WRONG in self.sees

    @property
    def sees_solution(self) -> bool:
        return SOLUTIONS in self.sees


_NOTHING: frozenset[str] = frozenset()
_SOLVED = frozenset({SOLUTIONS})
_GOLD = frozenset({SOLUTIONS, RIGHT})
_OURS = "allo.tokens.scorers:"
SCORERS = {
    scorer.name: scorer
    for scorer in (
        Scorer("implicit", _OURS + "implicit", ("model", "warmup"), PAIRS, logratios=True),
        Scorer("contrastive", _OURS + "contrastive", ("model", "chosen", "rejected"), PAIRS, logratios=True),
        Scorer("right_confidence", _OURS + "right_confidence", ("model", "chosen"), frozenset({RIGHT})),
        Scorer("advantage", _OURS + "advantage", (), PAIRS, of_prompt=True),
        Scorer(
            "privileged", _OURS + "privileged", ("model",), _GOLD, prompts_with_solution=True, of_prompt=True
        ),
        Scorer(
            "rewriter", _OURS + "rewriter", ("rewriter",), _SOLVED, prompts_with_solution=True, of_prompt=True
        ),
        Scorer("confidence", _OURS + "confidence", ("model",), _NOTHING),
        Scorer("entropy", _OURS + "entropy", ("model",), _NOTHING),
        Scorer(
            "edit", _OURS + "edit", (), _GOLD, of_prompt=True
        ),  # the solutions of prompts without a right sample
        Scorer("uniform", _OURS + "uniform", (), _NOTHING),
        Scorer("random", _OURS + "random", (), _NOTHING),
    )
}
ScorerName = Annotated[str, OneOf(SCORERS, or_own=True)]


def scorer_entry(name: str) -> Scorer:
    """Return the scorer's entry; a user's own asks the starting model and may read all that is known."""
    return SCORERS.get(name) or Scorer(name, name, ("model",), _GOLD)


MUCH = 0.5
"""The share of marked tokens above which a run says that a marking tells little."""
WeightRule = Literal["indicator", "soft", "as_released", "rlmec"]


class Score(Block):
    """The scorers of tokens, and the weights that follow from their scores (method.md 1.2)."""

    scorer: ScorerName = "implicit"
    """One of the library's, or a function of yours, `file.py:function` (docs/extending.md)."""
    beside: list[ScorerName] = []
    """Other scorers of the same completions, to compare with; the weights do not depend on them."""
    rewriter: Place | None = None
    """The folder that `allo rewriter train` wrote, for the scorer `rewriter` (docs/rewriter.md)."""
    weights: WeightRule = "indicator"
    threshold: Annotated[Number, Field(ge=0, le=1)] = 0.27
    """`indicator` marks tokens whose probability of being aligned is below this. 0.27 is a log-ratio of one root mean square
    below 0; 0.5, as published, marks every token whose log-ratio is negative, which is most of an ordinary text."""
    marked: Literal["all", "first"] = "all"
    """The marked tokens of a completion that keep their weight: all, or only the first, which causes what follows."""
    solutions: bool = True
    """Show gold solutions to the scorers; otherwise they only see right samples."""
    batch_size: BatchSize = 16
    training: ContrastTraining = ContrastTraining()
    """Settings for training the two models that `contrastive` compares: one on the chosen answers, which
    `right_confidence` uses as well, and one on the rejected."""

    @property
    def scorers(self) -> list[str]:
        """The scorer that decides the weights, then those beside it."""
        return [self.scorer, *self.beside]

    @property
    def entries(self) -> list[Scorer]:
        """The scorers' entries, in the same order."""
        return [scorer_entry(name) for name in self.scorers]

    @property
    def sides(self) -> list[str]:
        """The pairs' sides on which a model is trained for the scorers."""
        return [side for side in ("chosen", "rejected") if any(side in one.needs for one in self.entries)]

    @property
    def warmup_reader(self) -> str | None:
        """The first scorer that asks the warm-up's model."""
        return next((one.name for one in self.entries if "warmup" in one.needs), None)

    def share_said(self, weighted: int, tokens: int) -> str:
        """Return a sentence on the share of these answers' tokens that have weight, and what to do if it is large."""
        said = f"{weighted:,} of {tokens:,} tokens of the answers to forget have weight ({weighted / max(tokens, 1):.0%})"
        if weighted <= MUCH * tokens or self.weights != "indicator":
            return f"{said}."
        return (
            f"{said}: so many that most are no mistakes. Lower score.threshold ({self.threshold}), or set score.marked to "
            "first; `score` alone is done again."
        )

    @model_validator(mode="after")
    def _rewriter_is_named(self) -> "Score":
        named = next((one.name for one in self.entries if "rewriter" in one.needs), None)
        if named is not None and self.rewriter is None:
            raise ValueError(
                f"scorer {named!r} needs the folder of a rewriter: set score.rewriter (see docs/rewriter.md)"
            )
        return self

    @model_validator(mode="after")
    def _scorers_differ(self) -> "Score":
        twice = next((name for name in self.scorers if self.scorers.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice!r} is named twice in scorer and beside: name each scorer once")
        return self
