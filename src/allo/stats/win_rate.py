"""What a judge's verdicts on pairs of answers say of a model and of the judge.

`scores` is float64 (prompts, 2): column 0 where the model's answer was shown first, column 1 where the baseline's
was. 1: the model's answer was preferred; 0: the baseline's; 0.5: neither. A prompt is one unit, since both of its
columns are about the same two answers.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from allo.stats.metrics import Estimate, bootstrap

Scores = NDArray[np.float64]

WIN, TIE, LOSS = 1.0, 0.5, 0.0


@dataclass(frozen=True)
class Outcomes:
    """Prompts by what both orders together say; two opposite verdicts are a tie."""

    wins: int
    ties: int
    losses: int


def win_rate(scores: Scores, *, seed: int) -> Estimate:
    """The mean score: a tie is half a win. The interval is over prompts (percentile bootstrap), both orders as one."""
    return bootstrap(scores.tolist(), seed=seed)


def outcomes(scores: Scores) -> Outcomes:
    means = scores.mean(1)
    return Outcomes(int((means > TIE).sum()), int((means == TIE).sum()), int((means < TIE).sum()))


def position_bias(scores: Scores) -> float | None:
    """How much more often the first answer was preferred than the second, of all verdicts that are no tie.

    1: always the first; -1: always the second; 0: as often. None where every verdict is a tie.
    """
    model_first, baseline_first = scores.T
    first = (model_first == WIN).sum() + (baseline_first == LOSS).sum()
    second = (model_first == LOSS).sum() + (baseline_first == WIN).sum()
    return float((first - second) / (first + second)) if first + second else None


def agreement(scores: Scores) -> float | None:
    """Share of prompts on which both orders give the same verdict; None where there is no prompt."""
    return float((scores[:, 0] == scores[:, 1]).mean()) if len(scores) else None


def bounds(scores: Scores, *, num_unknown: int) -> tuple[float, float]:
    """The win rate if the model had lost every prompt that has no score, and if it had won every one."""
    num = len(scores) + num_unknown
    known = float(scores.mean(1).sum())
    return known / num, (known + num_unknown) / num
