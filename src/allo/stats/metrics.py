"""Accuracies with intervals. Every interval is two-sided, at 95%."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean of `num` observations with the bounds of its interval."""

    value: float
    low: float
    high: float
    num: int

    @property
    def figure(self) -> dict[str, float]:
        """Return the mean and its bounds, as files of results have them."""
        return {"value": self.value, "low": self.low, "high": self.high}


def wilson(correct: Sequence[bool]) -> Estimate:
    """Return the share of right answers with Wilson's score interval (1927); one observation per prompt."""
    from scipy import stats  # takes a second, and a plan has no use for it

    num, hits = len(correct), sum(correct)
    interval = stats.binomtest(hits, num).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(hits / num, float(interval.low), float(interval.high), num)


def bootstrap(groups: Sequence[Sequence[float]], *, seed: int) -> Estimate:
    """Return the mean over all observations, with an interval from resampled groups (percentile bootstrap).

    A group holds the samples of one prompt, which are not independent.
    """
    sums = np.array([sum(group) for group in groups])
    sizes = np.array([len(group) for group in groups])
    drawn = np.random.default_rng(seed).integers(len(groups), size=(RESAMPLES, len(groups)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(sums.sum() / sizes.sum()), float(low), float(high), int(sizes.sum()))


def auc(
    scores: Sequence[float], good: Sequence[bool], groups: Sequence[Sequence[int]], *, seed: int
) -> Estimate | None:
    """Return the chance that a good observation scores higher than a bad one (ties count half), from resampled groups.

    A group holds the places of one prompt's observations. None without a good or without a bad one.
    """
    if all(good) or not any(good):
        return None
    ranks = np.unique(np.array(scores), return_inverse=True)[1]
    counts = np.zeros((2, len(groups), ranks.max() + 1))  # of bad and good, by group and rank
    for number, places in enumerate(groups):
        for place in places:
            counts[int(good[place]), number, ranks[place]] += 1

    def of(times: NDArray[Any]) -> NDArray[Any]:
        """Return the chances if each group counts so often, [n, groups] -> [n]; NaN where one kind is missing."""
        bad, above = times @ counts
        pairs = bad.sum(1) * above.sum(1)
        won = (above * (bad.cumsum(1) - bad / 2)).sum(1)
        return np.divide(won, pairs, out=np.full(len(won), np.nan), where=pairs > 0)

    drawn = np.random.default_rng(seed).integers(len(groups), size=(RESAMPLES, len(groups)))
    times = [np.bincount(row, minlength=len(groups)) for row in drawn]
    found = np.concatenate([of(np.array(times[start : start + 100])) for start in range(0, RESAMPLES, 100)])
    low, high = np.nanquantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(of(np.ones((1, len(groups))))[0]), float(low), float(high), len(scores))


def pass_at_k(num_correct: Sequence[int], *, num_samples: int, k: int) -> float:
    """Return the unbiased mean chance that one of k samples is right (arXiv 2107.03374, eq. 1).

    `num_correct` has, for each prompt, the number of right answers among its `num_samples` samples.
    """
    total = math.comb(num_samples, k)
    return float(np.mean([1 - math.comb(num_samples - hits, k) / total for hits in num_correct]))
