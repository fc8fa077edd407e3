"""Win rate, position bias and agreement from a judge's verdicts on pairs of answers.

`scores` is float64 (prompts, 2). In column 0 the model's answer was shown first, in column 1 the baseline's. 1: the
judge preferred the model's answer; 0: the baseline's; 0.5: neither. A prompt is one unit, since both columns are
about the same two answers.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from allo.stats.metrics import Estimate, bootstrap

Scores = NDArray[np.float64]

WIN, TIE, LOSS = 1.0, 0.5, 0.0


@dataclass(frozen=True)
class Outcomes:
    """Numbers of prompts by the verdict of both orders together; two opposite verdicts are a tie."""

    wins: int
    ties: int
    losses: int


def win_rate(scores: Scores, *, seed: int) -> Estimate:
    """Return the mean score, with a percentile bootstrap interval over prompts; a tie is half a win."""
    return bootstrap(scores.tolist(), seed=seed)


def outcomes(scores: Scores) -> Outcomes:
    means = scores.mean(1)
    return Outcomes(int((means > TIE).sum()), int((means == TIE).sum()), int((means < TIE).sum()))


def position_bias(scores: Scores) -> float | None:
    """Return how much more often the first answer was preferred than the second, as a share of all non-ties.

    1: always the first; -1: always the second; 0: equally often. None if every verdict is a tie.
    """
    model_first, baseline_first = scores.T
    first = (model_first == WIN).sum() + (baseline_first == LOSS).sum()
    second = (model_first == LOSS).sum() + (baseline_first == WIN).sum()
    return float((first - second) / (first + second)) if first + second else None


def agreement(scores: Scores) -> float | None:
    """Return the share of prompts on which both orders give the same verdict; None without prompts."""
    return float((scores[:, 0] == scores[:, 1]).mean()) if len(scores) else None


def bounds(scores: Scores, *, num_unknown: int) -> tuple[float, float]:
    """Return the win rate if the model had lost every prompt without a score, and if it had won each."""
    num = len(scores) + num_unknown
    known = float(scores.mean(1).sum())
    return known / num, (known + num_unknown) / num
