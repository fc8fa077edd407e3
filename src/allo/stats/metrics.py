"""Accuracies with intervals. Every interval is two-sided, at 95%."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

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
    values, labels, group_of = np.array(scores), np.array(good, dtype=bool), np.empty(len(scores), dtype=int)
    for number, places in enumerate(groups):
        group_of[list(places)] = number
    if labels.all() or not labels.any():
        return None
    ranks, is_good = stats.rankdata(values, method="dense").astype(int) - 1, labels.astype(float)

    def of(weights: np.ndarray) -> float:
        """Return the chance if each observation counts this often; NaN if one kind counts nowhere."""
        above = np.bincount(ranks, weights * is_good, minlength=ranks.max() + 1)
        below = np.bincount(ranks, weights * (1 - is_good), minlength=ranks.max() + 1)
        pairs = above.sum() * below.sum()
        return float((above * (below.cumsum() - below / 2)).sum() / pairs) if pairs else math.nan

    drawn = np.random.default_rng(seed).integers(len(groups), size=(RESAMPLES, len(groups)))
    found = [of(np.bincount(row, minlength=len(groups))[group_of].astype(float)) for row in drawn]
    low, high = np.nanquantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(of(np.ones(len(values))), float(low), float(high), len(values))


def pass_at_k(num_correct: Sequence[int], *, num_samples: int, k: int) -> float:
    """Return the unbiased mean chance that one of k samples is right (arXiv 2107.03374, eq. 1).

    `num_correct` has, for each prompt, the number of right answers among its `num_samples` samples.
    """
    total = math.comb(num_samples, k)
    return float(np.mean([1 - math.comb(num_samples - hits, k) / total for hits in num_correct]))
