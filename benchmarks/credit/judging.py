"""Measures of how well scores separate wrong words from right ones, with bootstrap intervals over completions.

Low scores mark wrong words. Words of one completion are not independent, so completions are resampled, not words.
Each draw weighs a completion by how often it was drawn, and every figure is computed with these weights.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_DRAWS = 400
INTERVAL = (2.5, 97.5)  # percent

Numbers = NDArray[np.float64]
Weighted = Callable[[Numbers], float]


@dataclass(frozen=True)
class Words:
    """Words of many completions, concatenated [n]: score, whether wrong, and completion."""

    scores: Numbers
    wrong: NDArray[np.bool_]
    owner: NDArray[np.int64]

    def where(self, kept: NDArray[np.bool_]) -> "Words":
        return Words(self.scores[kept], self.wrong[kept], self.owner[kept])


def auc(words: Words) -> Weighted:
    """Return P(a wrong word scores below a right one), ties one half: the area under the ROC curve."""
    values, place = np.unique(words.scores, return_inverse=True)

    def area(weights: Numbers) -> float:
        own = weights[words.owner]
        wrong = np.bincount(place, own * words.wrong, minlength=len(values))
        right = np.bincount(place, own * ~words.wrong, minlength=len(values))
        below = np.cumsum(wrong) - wrong / 2
        return float((right * below).sum() / (right.sum() * wrong.sum()))

    return area


def precision(words: Words, *, threshold: float) -> Weighted:
    """Return the share of marked words, those below the threshold, that are wrong."""
    marked = words.scores < threshold

    def share(weights: Numbers) -> float:
        own = weights[words.owner] * marked
        return float((own * words.wrong).sum() / own.sum()) if own.sum() else float("nan")

    return share


def recall(words: Words, *, threshold: float) -> Weighted:
    """Return the share of wrong words that are marked."""
    marked = words.scores < threshold

    def share(weights: Numbers) -> float:
        own = weights[words.owner] * words.wrong
        return float((own * marked).sum() / own.sum())

    return share


def best_threshold(words: Words) -> float:
    """Return the threshold with the highest F1, halfway between two scores; the highest threshold on ties.

    If every word is marked, it is one half above the highest score.
    """
    values, place = np.unique(words.scores, return_inverse=True)
    wrong = np.cumsum(np.bincount(place, words.wrong, minlength=len(values)))
    marked = np.cumsum(np.bincount(place, minlength=len(values)))
    f1 = 2 * wrong / (marked + words.wrong.sum())
    best = len(values) - 1 - int(np.argmax(f1[::-1]))
    above = values[best + 1] if best + 1 < len(values) else values[best] + 1
    return float((values[best] + above) / 2)


def with_interval(figure: Weighted, words: Words, *, seed: int) -> dict[str, float]:
    """Return the figure over all completions, and its interval from completions drawn with replacement."""
    rng = np.random.default_rng(seed)
    owners, num = np.unique(words.owner), int(words.owner.max()) + 1
    values = []
    for _ in range(NUM_DRAWS):
        drawn = rng.choice(owners, len(owners))
        values.append(figure(np.bincount(drawn, minlength=num).astype(float)))
    low, high = np.nanpercentile(values, INTERVAL)
    return {"value": figure(np.ones(num)), "low": float(low), "high": float(high)}
