"""A method over its learning rates: its KL at a given accuracy, and the range of rates near its best accuracy.

Intervals are two-sided, at 95%, from resampled problems, the same for every rate and method. Each KL is drawn from a
normal distribution with its own error, since nothing else is known of it. Training seeds are not resampled: a tuning
has few.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from allo.stats.metrics import CONFIDENCE, RESAMPLES
from allo.stats.statistics import drawn_counts

Vector = NDArray[np.float64]

WITHIN = 0.02  # of the best accuracy: the largest loss of a rate that counts as near the best
UNDEFINED = 0.05  # the largest share of draws without a value for which an interval is still given


@dataclass(frozen=True)
class RateCurve:
    """A method's results at each of its rates, in ascending order.

    `right`: (rates, problems), share of right answers per problem. `kl`, `kl_error`: (rates,), nats per token and its
    standard error.
    """

    rates: Vector
    right: NDArray[np.float64]
    kl: Vector
    kl_error: Vector


@dataclass(frozen=True)
class EqualAccuracy:
    """The KL of a method and of the reference at equal `accuracy`, and their ratio with its interval.

    `low` and `high` are None if more than `UNDEFINED` of the draws have no such accuracy.
    """

    accuracy: float
    kl: float
    reference_kl: float
    ratio: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Robustness:
    """The rates around the best one that lose at most `WITHIN`; `ratio` is the highest divided by the lowest.

    `open_below`, `open_above`: the range reaches the last rate tried, so it may be wider.
    """

    lowest: float
    highest: float
    ratio: float
    low: float
    high: float
    open_below: bool
    open_above: bool


def kl_at_accuracy(accuracy: Sequence[float], kl: Sequence[float], target: float) -> float | None:
    """Return the least KL at which the polyline through points (accuracy, KL) reaches `target`, or None."""
    reached = []
    for (left, kl_left), (right, kl_right) in pairwise(zip(accuracy, kl, strict=True)):
        if left == right == target:
            reached.append(min(kl_left, kl_right))
        elif min(left, right) <= target <= max(left, right):
            reached.append(kl_left + (target - left) / (right - left) * (kl_right - kl_left))
    return min(reached, default=None)


def kl_at_equal_accuracy(
    method: RateCurve, reference: RateCurve, *, start: Vector, seed: int, resamples: int = RESAMPLES
) -> EqualAccuracy | None:
    """Return both methods' KL at the highest accuracy that both reach over their rates.

    A curve begins at the starting model (`start`: (problems,), share of right answers), with a KL of 0, and connects
    the rates by straight lines. None if a method never exceeds the start.
    """
    rng = np.random.default_rng(seed)
    num, curves = len(start), (method, reference)
    found = _at_equal_accuracy(
        [_path(start.mean(), curve.right.mean(1)) for curve in curves],
        [_path(0.0, curve.kl) for curve in curves],
    )
    if found is None or not found[2] > 0:
        return None
    shares = drawn_counts(num, resamples=resamples, rng=rng) / num
    begins = shares @ start
    accuracies = [shares @ curve.right.T for curve in curves]
    # A KL is never negative.
    kls = [
        np.maximum(0.0, rng.normal(curve.kl, curve.kl_error, size=(resamples, len(curve.kl))))
        for curve in curves
    ]
    draws = []
    for i in range(resamples):
        drawn = _at_equal_accuracy(
            [_path(begins[i], own[i]) for own in accuracies], [_path(0.0, own[i]) for own in kls]
        )
        if drawn is not None and drawn[2] > 0:
            draws.append(drawn[1] / drawn[2])
    low, high = (
        map(float, np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]))
        if len(draws) >= (1 - UNDEFINED) * resamples
        else (None, None)
    )
    accuracy, kl, reference_kl = found
    return EqualAccuracy(accuracy, kl, reference_kl, kl / reference_kl, low, high)


def _path(begin: float, curve: Vector) -> list[float]:
    return [float(begin), *curve.tolist()]


def _at_equal_accuracy(
    accuracies: Sequence[list[float]], kls: Sequence[list[float]]
) -> tuple[float, float, float] | None:
    """Return the equal accuracy, the method's KL and the reference's, for two paths that begin at the start."""
    target = min(map(max, accuracies))
    if target <= accuracies[0][0]:
        return None
    reached = [kl_at_accuracy(accuracy, kl, target) for accuracy, kl in zip(accuracies, kls, strict=True)]
    assert reached[0] is not None and reached[1] is not None  # both paths run from below the target to it
    return target, reached[0], reached[1]


def robustness(rates: Vector, right: NDArray[np.float64], *, seed: int) -> Robustness:
    """Return the range of tried rates (ascending) within `WITHIN` of the best. `right`: (rates, problems).

    The range has no gaps, and its ends are tried rates, not interpolated ones.
    """
    first, last = _serving(right.mean(1))
    rng = np.random.default_rng(seed)
    num = right.shape[1]
    shares = drawn_counts(num, resamples=RESAMPLES, rng=rng) / num
    ends = [_serving(accuracy) for accuracy in shares @ right.T]
    ratios = [rates[end] / rates[begin] for begin, end in ends]
    # Ratios of tried rates, so quantiles must be observed values.
    low, high = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], method="inverted_cdf")
    return Robustness(
        lowest=float(rates[first]),
        highest=float(rates[last]),
        ratio=float(rates[last] / rates[first]),
        low=float(low),
        high=float(high),
        open_below=first == 0,
        open_above=last == len(rates) - 1,
    )


def _serving(accuracy: Sequence[float] | Vector) -> tuple[int, int]:
    """Return the first and last index of the rates around the best that lose at most `WITHIN`."""
    best = int(np.argmax(accuracy))
    floor = accuracy[best] - WITHIN - 1e-12  # a loss of exactly 0.02 is within 0.02
    first = last = best
    while first > 0 and accuracy[first - 1] >= floor:
        first -= 1
    while last < len(accuracy) - 1 and accuracy[last + 1] >= floor:
        last += 1
    return first, last
