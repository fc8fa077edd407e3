"""The logged numbers of one stage, as the diagnoses read them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from allo.files.evaluation import ModelResult
from allo.report import figures

Steps = Sequence[Mapping[str, float]]

FEWEST = 4
"""Logged steps that a diagnosis needs. The first one measures the untrained model, and three have a median."""
SHARE = 0.1
"""The share of the logged steps that count as the start or the end: the last tenth of a cosine schedule hardly moves."""
NO_REFERENCE = frozenset({"simpo"})
"""Losses whose rewards are no changes from the start."""


@dataclass(frozen=True)
class Evidence:
    """One stage as a diagnosis reads it: logged steps and the resolved recipe, or the evaluation before and after.

    `scored` has the manifest's counts of the token scores that forgetting follows.
    """

    stage: str
    steps: Steps = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    scored: Mapping[str, object] = field(default_factory=dict)
    before: ModelResult | None = None
    after: ModelResult | None = None

    def logged(self, metric: str) -> list[Mapping[str, float]]:
        """Return the steps at which a metric is finite."""
        return [step for step in self.steps if math.isfinite(step.get(metric, math.nan))]

    def values(self, metric: str) -> list[float]:
        """Return a metric's finite values in the order of the steps."""
        return [step[metric] for step in self.logged(metric)]

    def setting(self, key: str) -> Any:
        """Return the recipe's value at a dotted key; None if it has none."""
        value: Any = self.recipe
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def number(self, key: str) -> float | None:
        """Return the recipe's number at a dotted key; None if it has none."""
        value = self.setting(key)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    def most_steps(self, block: str) -> float | None:
        """Return a block's `max_steps`, by which its number of epochs is ignored; None if it is off."""
        limit = self.number(f"{block}.training.max_steps")
        return limit if limit and limit > 0 else None

    @property
    def num_steps(self) -> str:
        """The number of optimizer steps in words."""
        last = self.steps[-1].get("step", len(self.steps))
        return f"{figures.count(last)} steps"

    def changes(self, metric: str) -> list[float]:
        """Return a reward's steps in nats of log-likelihood since the start; none if the loss has no reference."""
        beta, values = self.number(f"{self.stage}.beta"), self.values(metric)
        loss = str(self.setting(f"{self.stage}.loss"))
        # A user's own loss may have no reference: its first rewards are then not 0.
        known = loss not in NO_REFERENCE if ":" not in loss else values[:1] == [0.0]
        return [value / beta for value in values] if beta and known and len(values) >= FEWEST else []


def span(values: Sequence[float]) -> int:
    """Return the number of steps at either end that count as it."""
    return max(FEWEST - 1, int(len(values) * SHARE))


def at_start(values: Sequence[float]) -> float:
    """Return the median of the first steps."""
    return median(values[: span(values)])


def at_end(values: Sequence[float]) -> float:
    """Return the median of the last steps: an epoch's last step may have few rows."""
    return median(values[-span(values) :])
