"""What seeds and problems say of a mean or a difference: intervals, tests, Holm's correction.

A grid is a float64 array (seeds, problems): what the model trained with one seed scores on one problem. A paired
difference is the difference of two grids with the same seeds and problems. Seeds and problems are crossed: every
model answers every problem, so both are drawn anew to say what other seeds and other problems would have given.
Every interval is two-sided, at 95%.
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
"""No smaller p is given: simulations do not reach further, and no model of seeds and problems is that exact."""
FLIPS = 19_999  # of Monte Carlo; the smallest p is 1 / 20,000
EXACT_UP_TO = 14  # signs that are enumerated: 16,384 patterns
TIED = 1e-12  # sums in another order differ by so much, of their size


@dataclass(frozen=True)
class Spread:
    """The variance of a grid's mean, and the degrees of freedom of Student's t that goes with it."""

    variance: float
    freedom: float


@dataclass(frozen=True)
class MeanSquares:
    """Two-way analysis of variance of a grid of `shape`; each square a float, or an array of many grids' squares."""

    of_seeds: Grid
    of_problems: Grid
    interaction: Grid
    shape: tuple[int, int]


def mean_squares(grid: Grid) -> MeanSquares:
    """Return a grid's mean squares; it has two seeds and two problems at least."""
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

    Crossed random effects: variance = (MS_seeds + max(MS_problems - MS_interaction, 0)) / size. The seeds' mean square
    always counts. It rests on few seeds, so the degrees of freedom follow Satterthwaite's rule (1946) at its
    upper confidence limit rather than at its estimate, in the manner of Berger and Boos (JASA 89 (1994) 1012):

        limit = MS_seeds * (S - 1) / chi2.ppf(doubt, S - 1);  share = limit / (limit + the problems' term)
        freedom = (S - 1) / share^2

    With few seeds this is S - 1; with many, or problems that vary far more than seeds, it grows. At the estimate
    itself, a mean square that is small by chance would turn Student's t into a normal, and p would be too small where
    Holm's correction reads it.

    Args:
        doubt: the chance that the seeds' mean square lies above its limit; a test takes the smallest p that it gives.
    """
    free = squares.shape[0] - 1
    of_problems = np.maximum(squares.of_problems - squares.interaction, 0.0)
    limit = squares.of_seeds * free / stats.chi2.ppf(doubt, free)
    total = limit + of_problems
    share = np.divide(limit, total, out=np.ones_like(total), where=limit > 0)
    return (squares.of_seeds + of_problems) / math.prod(squares.shape), free / share**2


def spread_of_mean(grid: Grid, *, doubt: float = 1 - CONFIDENCE) -> Spread:
    """Return `crossed_spread` of a grid.

    One seed says nothing of seeds, and one problem nothing of problems: that component is then left out.
    """
    if 1 in grid.shape:
        num = grid.size
        return Spread(float(grid.var(ddof=1) / num), num - 1) if num > 1 else Spread(math.nan, 0)
    variance, freedom = crossed_spread(mean_squares(grid), doubt=doubt)
    return Spread(float(variance), float(freedom))


def drawn_counts(num: int, *, resamples: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """How often each of `num` things is drawn in `num` draws with replacement: (resamples, num)."""
    drawn = rng.integers(num, size=(resamples, num)) + num * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * num).reshape(resamples, num)


def crossed_bootstrap(grid: Grid, *, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """A grid's mean; its interval by drawing seeds and problems anew, both with replacement.

    The pigeonhole bootstrap (Owen, Annals of Applied Statistics 1 (2007) 386) gives the interval's shape. With few seeds its percentiles are
    too narrow (of n seeds it sees (n - 1)/n of the variance, and quantiles of a normal where a t's are due), and
    with much interaction too wide, so the interval is stretched about the mean to the width of `spread_of_mean`.
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


def mean_over_seeds(values: Sequence[float]) -> Estimate:
    """The mean of one value a seed, with Student's interval; two seeds at least."""
    assert len(values) > 1
    mean = float(np.mean(values))
    spread = spread_of_mean(np.array(values, dtype=float)[:, None])
    half = stats.t.ppf((1 + CONFIDENCE) / 2, spread.freedom) * math.sqrt(spread.variance)
    return Estimate(mean, mean - float(half), mean + float(half), len(values))


def crossed_p(differences: Grid) -> float:
    """Two-sided p of a paired difference that should hold for other seeds and other problems alike.

    Student's t of the mean over `spread_of_mean`. Never below `SMALLEST_P`; 1 for a single seed, which says nothing of
    others: a p over its problems alone is too small for a claim about methods. It is stricter than
    the interval of `crossed_bootstrap`, whose level is 5%: it must hold in the tail, where Holm's correction reads it.
    """
    if len(differences) == 1:
        return 1.0
    spread = spread_of_mean(differences, doubt=SMALLEST_P)
    mean = abs(float(differences.mean()))
    if spread.variance == 0:
        return 1.0 if mean == 0 else SMALLEST_P
    return max(SMALLEST_P, float(2 * stats.t.sf(mean / math.sqrt(spread.variance), spread.freedom)))


def sign_flip_p(differences: NDArray[np.float64], *, seed: int) -> float:
    """Two-sided p of the mean of paired differences (n,), if each were as likely to have the other sign.

    All patterns of signs are enumerated where few differences are not 0. Else `FLIPS` are drawn, and the observed
    pattern counts as one of them, so that p is never 0 (Phipson and Smyth 2010, arXiv 1603.05766).
    """
    moved = differences[differences != 0]
    if not len(moved):
        return 1.0
    observed = abs(moved.sum()) - TIED * np.abs(moved).sum()
    if len(moved) <= EXACT_UP_TO:
        flipped = np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved)) & 1
        return float(np.mean(np.abs((1 - 2 * flipped) @ moved) >= observed))
    rng = np.random.default_rng(seed)
    row = -(-len(moved) // 8)  # bytes that hold a pattern
    bits = np.unpackbits(rng.integers(256, size=(FLIPS, row), dtype=np.uint8), axis=1, count=len(moved))
    sums = 2 * (bits @ moved) - moved.sum()
    return float((1 + np.count_nonzero(np.abs(sums) >= observed)) / (1 + FLIPS))


def seeds_p(differences: Grid, *, seed: int) -> float:
    """Sign-flip p over seeds of the difference averaged over problems: never below 2^(1 - seeds), 0.0625 for 5."""
    return sign_flip_p(differences.mean(1), seed=seed)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): the i-th smallest of m times m - i, never falling, at most 1."""
    order = np.argsort(ps, kind="stable")
    stepped = np.maximum.accumulate(np.array(ps, dtype=float)[order] * np.arange(len(ps), 0, -1))
    corrected = np.empty(len(ps))
    corrected[order] = np.minimum(1.0, stepped)
    return corrected.tolist()
