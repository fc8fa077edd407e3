"""The progress of a run's stages, and how long they still take: by its pace, earlier records and each stage's tokens."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from allo.console import Rest, Run, note, on_terminal
from allo.files.stage import Stage
from allo.recipe import Recipe
from allo.tasks.sources import Sources

CountTokens = Callable[[Recipe, Sources], Mapping[str, int]]
"""Returns the tokens that each stage reads or writes, as `plan/duration.py` counts them."""
_SAMPLING = {"sample", "evaluate"}


@dataclass
class Estimate:
    """The seconds of a run's `stages`; a stage about which nothing is known has none, and none is made up.

    `earlier` has the seconds on record from before this process, `tokens` those of each stage by its name without a
    round, `quick` the names of stages that run no model. `measured` has the seconds of this run.
    """

    stages: Sequence[str]
    earlier: Mapping[str, float] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)
    quick: Collection[str] = ()
    measured: dict[str, float] = field(default_factory=dict)
    samples: bool = True

    def rest(self, stage: str, *, spent: float = 0.0) -> Rest:
        """Return what tells the seconds left of the run from a stage on; earlier processes `spent` some on the stage."""
        later = self.stages[self.stages.index(stage) + 1 :]

        def left(taken: float, own: float | None) -> float | None:
            known = self.seconds(stage, self.measured)
            if own is None and known is not None:
                own = max(0.0, known - spent - taken)
            if own is None:
                return None
            measured = self.measured | {stage: spent + taken + own}
            each = [self.seconds(name, measured) for name in later]
            return None if None in each else own + sum(filter(None, each))

        return left

    def seconds(self, stage: str, measured: Mapping[str, float]) -> float | None:
        """Return a stage's seconds: as on record, or by its tokens and the pace of stages of its kind."""
        name = _plain(stage)
        if stage in self.earlier:
            return self.earlier[stage]
        if name in self.quick:
            return 0.0
        measured = {**self.earlier, **measured}
        alike = [
            one for one in measured if self.tokens.get(_plain(one)) and self._kind(one) == self._kind(name)
        ]
        if not alike or name not in self.tokens:
            return None
        tokens = sum(self.tokens[_plain(one)] for one in alike)
        return self.tokens[name] * sum(measured[one] for one in alike) / tokens

    def _kind(self, stage: str) -> bool:
        """Return whether a stage samples: that has a pace of its own."""
        return self.samples and _plain(stage) in _SAMPLING


@dataclass(frozen=True)
class Progress:
    """A run's line of progress and the time that it will take; `places` numbers its stages by name."""

    shown: Run
    estimate: Estimate
    places: Mapping[str, int]

    def begin(self, stage: str, *, spent: float) -> None:
        """Show that a stage begins, on which earlier processes spent some seconds."""
        number = self.places[stage]
        self.shown.begin(number, stage, self.estimate.rest(stage, spent=spent))
        if not on_terminal():
            note(stage, f"stage {number} of {self.shown.total} ...")


def progress_of(
    recipe: Recipe,
    stages: Sequence[Stage],
    earlier: Mapping[str, Mapping[str, Any]],
    shown: Run,
    *,
    only: str | None = None,
) -> Progress:
    """Return the progress of a run's stages, of which `only` one may run, before their tokens are known.

    `earlier` has the record of each stage that was finished before.
    """
    names = [stage.name for stage in stages]
    quick = {"begin", "keep", "unite", "pair", "report"}
    quick |= set() if recipe.sft else {"sft"}
    quick |= set() if recipe.judge.function or recipe.judge.reward_model else {"judge"}
    estimate = Estimate(
        names if only is None else [only],
        {name: entry["seconds"] for name, entry in earlier.items()},
        quick=quick,
        samples=not recipe.data.is_ready,
    )
    return Progress(shown, estimate, {name: number for number, name in enumerate(names, start=1)})


def countable(recipe: Recipe, tokens: Mapping[str, int]) -> dict[str, int]:
    """Return the tokens of the stages whose time they tell: not of those that wait for servers, judges or samples."""
    unknown = {"sample"} if recipe.sample.backend != "hf" else set()
    unknown |= {"improve"} if recipe.on_policy else set()
    # Judges take their own time; the plan counts no samples of a run on ready rows.
    judged = recipe.judge.function or recipe.measuring_reward_model
    unknown |= {"evaluate"} if judged or (recipe.data.is_ready and recipe.evaluate.sets) else set()
    return {stage: number for stage, number in tokens.items() if stage not in unknown}


def shares_said(recipe: Recipe, tokens: Mapping[str, int], ahead: Collection[str] | None = None) -> str:
    """Return in words which share of the time each stage is expected to take, and whether finding the weights takes most.

    `tokens` are those of each stage. Of these, the stages `ahead` count, by default all; nothing is said of fewer than two.
    """
    names = None if ahead is None else set(map(_plain, ahead))
    tokens = {stage: number for stage, number in tokens.items() if names is None or stage in names}
    known = countable(recipe, tokens)
    whole, training = sum(known.values()), sum(known.get(stage, 0) for stage in ("forget", "improve"))
    if not whole or len(tokens) < 2:
        return ""
    shares = ", ".join(f"{stage} {number / whole:.0%}" for stage, number in known.items())
    unknown = ", ".join(stage for stage in tokens if stage not in known)
    said = f"expected shares of the time, by tokens{unknown and f' (without {unknown})'}: {shares}"
    if not 0 < training <= known.get("locate", 0):
        return said
    return (
        f"{said}. Finding the weights (locate) takes as long as training them, or longer; locate.training.max_steps=N "
        "shortens it"
    )


def _plain(stage: str) -> str:
    return stage.rpartition("/")[2]
