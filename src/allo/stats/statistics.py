"""Intervals, tests and Holm's correction for means and differences over seeds and problems.

A grid is a float64 array (seeds, problems): the score on each problem of the model trained with each seed. A paired
difference is the difference of two grids with the same seeds and problems. Seeds and problems are crossed: every
model answers every problem. Both are therefore resampled, to cover other seeds and other problems. Every interval is
two-sided, at 95%.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from allo.stats.metrics import CONFIDENCE, RESAMPLES, Estimate

Grid = NDArray[np.float64]

SMALLEST_P = 1e-4
"""The smallest p reported: simulations reach no further, and no model of seeds and problems is more exact."""
RULE = "2026-11-30"
"""The day of the last change to what `crossed_p` and `crossed_bootstrap` give, which a comparison's record names."""
FLIPS = 19_999  # of Monte Carlo; the smallest p is 1 / 20,000
EXACT_UP_TO = 14  # signs: up to 16,384 patterns are enumerated
TIED = 1e-12  # relative difference of sums taken in another order


@dataclass(frozen=True)
class Spread:
    """The variance of a grid's mean, and the degrees of freedom for Student's t."""

    variance: float
    freedom: float


@dataclass(frozen=True)
class MeanSquares:
    """Two-way analysis of variance of a grid of `shape`; each square is a float, or an array for many grids."""

    of_seeds: Grid
    of_problems: Grid
    interaction: Grid
    shape: tuple[int, int]


def mean_squares(grid: Grid) -> MeanSquares:
    """Return a grid's mean squares; it must have at least two seeds and two problems."""
    num_seeds, num_problems = grid.shape
    by_seed, by_problem = grid.mean(1), grid.mean(0)
    rest = grid - by_seed[:, None] - by_problem + grid.mean()
    return MeanSquares(
        num_problems * by_seed.var(ddof=1),
        num_seeds * by_problem.var(ddof=1),
        (rest**2).sum() / ((num_seeds - 1) * (num_problems - 1)),
        grid.shape,
    )


def crossed_spread(squares: MeanSquares, *, doubt: float) -> tuple[Grid, Grid]:
    """Return the variance of a grid's mean over other seeds and other problems, and its degrees of freedom.

    Crossed random effects: variance = (MS_seeds + max(MS_problems - MS_interaction, 0)) / size. The seeds' mean
    square always counts, but rests on few seeds. Satterthwaite's rule (1946) for the degrees of freedom is therefore
    applied at the upper confidence limit, not at the estimate. This follows Berger and Boos (JASA 89 (1994) 1012):

        limit = MS_seeds * (S - 1) / chi2.ppf(doubt, S - 1);  share = limit / (limit + the problems' term)
        freedom = (S - 1) / share^2

    With few seeds this is S - 1. It grows with many seeds, or if problems vary far more than seeds. At the estimate
    itself, a mean square that is small by chance would turn Student's t into a normal. Then p would be too small in
    the tail that Holm's correction uses.

    Args:
        doubt: the chance that the seeds' mean square is above its limit; for a test, its smallest possible p.
    """
    free = squares.shape[0] - 1
    of_problems = np.maximum(squares.of_problems - squares.interaction, 0.0)
    limit = squares.of_seeds * free / stats.chi2.ppf(doubt, free)
    total = limit + of_problems
    share = np.divide(limit, total, out=np.ones_like(total), where=limit > 0)
    return (squares.of_seeds + of_problems) / math.prod(squares.shape), free / share**2


def spread_of_mean(grid: Grid, *, doubt: float = 1 - CONFIDENCE) -> Spread:
    """Return `crossed_spread` of a grid.

    A component with a single seed or a single problem cannot be estimated and is left out.
    """
    if 1 in grid.shape:
        num = grid.size
        return Spread(float(grid.var(ddof=1) / num), num - 1) if num > 1 else Spread(math.nan, 0)
    variance, freedom = crossed_spread(mean_squares(grid), doubt=doubt)
    return Spread(float(variance), float(freedom))


def drawn_counts(num: int, *, resamples: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Count how often each of `num` items is drawn in `num` draws with replacement: (resamples, num)."""
    drawn = rng.integers(num, size=(resamples, num)) + num * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * num).reshape(resamples, num)


def crossed_bootstrap(grid: Grid, *, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """Return a grid's mean, with an interval from seeds and problems both resampled with replacement.

    The pigeonhole bootstrap (Owen, Annals of Applied Statistics 1 (2007) 386) gives the interval's shape. With few
    seeds its percentiles are too narrow: of n seeds it sees (n - 1)/n of the variance, and it uses a normal's
    quantiles instead of a t's. With much interaction they are too wide. The interval is therefore stretched around
    the mean to the width of `spread_of_mean`.
    """
    num_seeds, num_problems = grid.shape
    rng = np.random.default_rng(seed)
    seeds = drawn_counts(num_seeds, resamples=resamples, rng=rng)
    problems = drawn_counts(num_problems, resamples=resamples, rng=rng)
    mean = float(grid.mean())
    deviations = ((seeds @ grid) * problems).sum(1) / grid.size - mean
    drawn = deviations.std()
    if drawn <= TIED * max(abs(mean), TIED):
        return Estimate(mean, mean, mean, grid.size)
    spread = spread_of_mean(grid)
    tail = (1 + CONFIDENCE) / 2
    stretch = stats.t.ppf(tail, spread.freedom) / stats.norm.ppf(tail) * math.sqrt(spread.variance) / drawn
    low, high = np.quantile(deviations, [1 - tail, tail])
    return Estimate(mean, mean + float(stretch * low), mean + float(stretch * high), grid.size)


def share_figure(grid: Grid, *, seed: int = 0) -> dict[str, float]:
    """Return a share's mean and bounds by `crossed_bootstrap`, kept within 0 and 1."""
    estimate = crossed_bootstrap(grid, seed=seed)
    return {"value": estimate.value, "low": max(0.0, estimate.low), "high": min(1.0, estimate.high)}


def mean_over_seeds(values: Sequence[float]) -> Estimate:
    """Return the mean of one value per seed, with Student's interval; needs at least two seeds."""
    assert len(values) > 1
    mean = float(np.mean(values))
    spread = spread_of_mean(np.array(values, dtype=float)[:, None])
    half = stats.t.ppf((1 + CONFIDENCE) / 2, spread.freedom) * math.sqrt(spread.variance)
    return Estimate(mean, mean - float(half), mean + float(half), len(values))


def crossed_p(differences: Grid) -> float:
    """Return the two-sided p of a paired difference, for both other seeds and other problems.

    It is Student's t of the mean over `spread_of_mean`, never below `SMALLEST_P`. It is 1 for a single seed: a p over
    problems alone would be too small for a claim about methods. The test is stricter than the 5% level of
    `crossed_bootstrap`'s interval, because Holm's correction uses its tail.
    """
    if len(differences) == 1:
        return 1.0
    spread = spread_of_mean(differences, doubt=SMALLEST_P)
    mean = abs(float(differences.mean()))
    if spread.variance == 0:
        return 1.0 if mean == 0 else SMALLEST_P
    return max(SMALLEST_P, float(2 * stats.t.sf(mean / math.sqrt(spread.variance), spread.freedom)))


def sign_flip_p(differences: NDArray[np.float64], *, seed: int) -> float:
    """Return the two-sided p of the mean of paired differences (n,), if either sign were equally likely.

    If few differences are not 0, all patterns of signs are enumerated. Otherwise `FLIPS` are drawn, and the observed
    pattern counts as one of them, so p is never 0 (Phipson and Smyth 2010, arXiv 1603.05766).
    """
    moved = differences[differences != 0]
    if not len(moved):
        return 1.0
    observed = abs(moved.sum()) - TIED * np.abs(moved).sum()
    if len(moved) <= EXACT_UP_TO:
        flipped = np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved)) & 1
        return float(np.mean(np.abs((1 - 2 * flipped) @ moved) >= observed))
    rng = np.random.default_rng(seed)
    row = -(-len(moved) // 8)  # bytes per pattern
    bits = np.unpackbits(rng.integers(256, size=(FLIPS, row), dtype=np.uint8), axis=1, count=len(moved))
    sums = 2 * (bits @ moved) - moved.sum()
    return float((1 + np.count_nonzero(np.abs(sums) >= observed)) / (1 + FLIPS))


def seeds_p(differences: Grid, *, seed: int) -> float:
    """Return the sign-flip p over seeds of the mean over problems: at least 2^(1 - seeds), 0.0625 for 5."""
    return sign_flip_p(differences.mean(1), seed=seed)


def holm(ps: Sequence[float]) -> list[float]:
    """Apply Holm's step-down correction (1979): the i-th smallest of m times m - i, never falling, at most 1."""
    order = np.argsort(ps, kind="stable")
    stepped = np.maximum.accumulate(np.array(ps, dtype=float)[order] * np.arange(len(ps), 0, -1))
    corrected = np.empty(len(ps))
    corrected[order] = np.minimum(1.0, stepped)
    return corrected.tolist()
