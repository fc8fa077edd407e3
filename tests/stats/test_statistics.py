"""Intervals cover, tests keep their level, and both are what enumeration, closed forms and scipy say."""

import math
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from allo.stats import statistics
from allo.stats.statistics import (
    EXACT_UP_TO,
    FLIPS,
    SMALLEST_P,
    Spread,
    crossed_bootstrap,
    crossed_p,
    drawn_counts,
    holm,
    mean_over_seeds,
    mean_squares,
    seeds_p,
    sign_flip_p,
    spread_of_mean,
)

CLOSE = 1e-12
# Shares of 400 simulations: a nominal 0.95 has a standard error of 0.011. With three seeds more may be covered, never less.
SIMULATIONS = 400
COVERAGE = (0.91, 0.995)
LEVEL = 0.05
LARGEST_LEVEL = 0.085
# Kolmogorov and Smirnov's test of uniformity itself.
UNIFORM = 0.01
MONTE_CARLO = 4 / math.sqrt(FLIPS) / 2  # four standard errors of a share
# Two bootstraps' bounds, as a share of the interval's width.
BOOTSTRAPS = 0.1


def grids(
    seeds: float, problems: float, rest: float, *, shape: tuple[int, int], seed: int
) -> NDArray[np.float64]:
    """SIMULATIONS grids of mean 0 whose seeds, problems and interaction have these standard deviations."""
    rng = np.random.default_rng(seed)
    num_seeds, num_problems = shape
    return (
        seeds * rng.normal(size=(SIMULATIONS, num_seeds, 1))
        + problems * rng.normal(size=(SIMULATIONS, 1, num_problems))
        + rest * rng.normal(size=(SIMULATIONS, num_seeds, num_problems))
    )


@pytest.mark.invariant("Intervals over seeds and problems cover; p is uniform under the null.")
@pytest.mark.parametrize("num_seeds", [3, 5])
@pytest.mark.parametrize(
    ("seeds", "problems", "rest"), [(0.0, 1.0, 1.0), (0.3, 1.0, 1.0), (1.0, 0.3, 0.3), (0.1, 0.5, 3.0)]
)
def test_the_crossed_interval_covers_whatever_varies_most(
    seeds: float, problems: float, rest: float, num_seeds: int
) -> None:
    drawn = grids(seeds, problems, rest, shape=(num_seeds, 80), seed=1)
    intervals = [crossed_bootstrap(grid, seed=i, resamples=300) for i, grid in enumerate(drawn)]
    covered = np.mean([interval.low <= 0 <= interval.high for interval in intervals])
    assert COVERAGE[0] <= covered <= COVERAGE[1]


def test_the_crossed_interval_covers_right_and_wrong_answers() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for i in range(SIMULATIONS):
        ability = 0.6 + 0.05 * rng.normal(size=(5, 1)) + 0.25 * rng.normal(size=(1, 80))
        interval = crossed_bootstrap((rng.random((5, 80)) < ability).astype(float), seed=i, resamples=300)
        covered += interval.low <= 0.6 <= interval.high
    assert COVERAGE[0] <= covered / SIMULATIONS <= COVERAGE[1]


def test_a_test_over_seeds_and_problems_keeps_its_level_where_one_over_problems_alone_does_not() -> None:
    drawn = grids(0.3, 1.0, 0.3, shape=(5, 80), seed=3)
    both = np.mean([crossed_p(grid) < LEVEL for grid in drawn])
    problems = np.mean([sign_flip_p(grid.mean(0), seed=0) < LEVEL for grid in drawn[:100]])
    assert both <= LARGEST_LEVEL < problems, "one seed's luck, shared by all problems, is no effect"


def test_the_variance_of_a_grids_mean_is_unbiased() -> None:
    drawn = grids(0.5, 2.0, 1.5, shape=(6, 20), seed=4)
    truth = 0.5**2 / 6 + 2.0**2 / 20 + 1.5**2 / 120
    estimates = [spread_of_mean(grid).variance for grid in drawn]
    assert np.mean(estimates) == pytest.approx(truth, abs=4 * np.std(estimates) / math.sqrt(SIMULATIONS))


def test_one_problem_is_students_t_over_seeds() -> None:
    values = np.random.default_rng(5).normal(0.3, 1.0, size=12)
    expected = stats.ttest_1samp(values, 0.0)
    assert crossed_p(values[:, None]) == pytest.approx(expected.pvalue, abs=CLOSE)
    assert crossed_p(values[None, :]) == 1, "one seed says nothing of others, however many problems"
    estimate, interval = mean_over_seeds(values.tolist()), expected.confidence_interval()
    assert (estimate.low, estimate.value, estimate.high) == (
        pytest.approx(interval.low, abs=CLOSE),
        pytest.approx(values.mean(), abs=CLOSE),
        pytest.approx(interval.high, abs=CLOSE),
    )


def test_with_one_seed_the_interval_is_scipys_bootstrap_over_problems() -> None:
    values = np.random.default_rng(6).exponential(size=200)
    ours = crossed_bootstrap(values[None, :], seed=0, resamples=3000)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=3000, rng=1)
    low, high = theirs.confidence_interval
    assert (ours.low, ours.high) == (
        pytest.approx(low, abs=BOOTSTRAPS * (high - low)),
        pytest.approx(high, abs=BOOTSTRAPS * (high - low)),
    )


def test_pairing_narrows_the_interval_of_a_difference() -> None:
    rng = np.random.default_rng(7)
    hard = rng.normal(size=(1, 100))
    one, other = (hard + 0.1 * rng.normal(size=(4, 100)) for _ in range(2))
    paired = crossed_bootstrap(one - other, seed=0)
    alone = crossed_bootstrap(one, seed=0)
    assert paired.high - paired.low < (alone.high - alone.low) / 4


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
def test_a_constant_has_no_spread_whatever_its_size(size: float) -> None:
    estimate = crossed_bootstrap(np.full((3, 4), 0.7 * size), seed=0)
    assert estimate.low == estimate.value == estimate.high == pytest.approx(0.7 * size, rel=CLOSE)
    spread = crossed_bootstrap(size * np.random.default_rng(17).normal(size=(3, 4)), seed=0)
    assert spread.low < spread.value < spread.high
    assert crossed_p(np.zeros((3, 4))) == 1


def test_an_interval_counts_its_observations_and_depends_on_its_seed_alone() -> None:
    grid = np.random.default_rng(13).normal(size=(3, 7))
    assert crossed_bootstrap(grid, seed=0).num == crossed_bootstrap(np.ones((3, 7)), seed=0).num == 21
    assert (mean_over_seeds([1.0, 3.0]).num, mean_over_seeds([1.0, 3.0]).value) == (2, 2.0)
    with pytest.raises(AssertionError):
        mean_over_seeds([1.0])
    assert (
        crossed_bootstrap(grid, seed=1) == crossed_bootstrap(grid, seed=1) != crossed_bootstrap(grid, seed=2)
    )


def test_items_are_drawn_with_replacement_as_often_as_there_are_items() -> None:
    counts = drawn_counts(6, resamples=4000, rng=np.random.default_rng(14))
    assert counts.shape == (4000, 6) and (counts.sum(1) == 6).all()
    # Binomial(6, 1/6): mean 1, variance 5/6; four standard errors.
    assert counts.mean(0) == pytest.approx(1, abs=4 * math.sqrt(5 / 6 / 4000))
    assert counts.var() == pytest.approx(5 / 6, abs=0.04)
    assert len({tuple(row) for row in counts.tolist()}) > 300, "each resample is its own"


def test_a_single_row_or_column_has_the_spread_of_its_values_and_a_single_number_has_none() -> None:
    values = np.array([1.0, 2.0, 4.0, 9.0])
    for grid in (values[None, :], values[:, None]):
        assert spread_of_mean(grid).variance == pytest.approx(values.var(ddof=1) / 4, abs=CLOSE)
        assert spread_of_mean(grid).freedom == 3
    assert spread_of_mean(np.array([[1.0, 2.0]])) == Spread(0.25, 1)
    alone = spread_of_mean(np.ones((1, 1)))
    assert math.isnan(alone.variance) and alone.freedom == 0


def test_seeds_that_agree_entirely_have_their_own_degrees_of_freedom() -> None:
    """Their mean square is 0, and so is its limit: it has no share of the variance to divide by."""
    same = np.tile(np.array([0.0, 1.0, 0.5, 0.0, 1.0]), (3, 1))
    found = spread_of_mean(same)
    assert found.variance == pytest.approx(mean_squares(same).of_problems / 15, abs=CLOSE)
    assert (found.freedom, spread_of_mean(np.zeros((3, 5))).freedom) == (2, 2)


def test_p_of_a_difference_is_students_t_with_the_doubt_of_the_smallest_p() -> None:
    grid = (
        0.4
        + np.random.default_rng(15).normal(size=(1, 30))
        + 0.2 * np.random.default_rng(16).normal(size=(8, 30))
    )
    spread = spread_of_mean(grid, doubt=SMALLEST_P)
    assert spread.freedom < 0.9 * spread_of_mean(grid).freedom, "the doubt matters here"
    expected = 2 * stats.t.sf(abs(grid.mean()) / math.sqrt(spread.variance), spread.freedom)
    assert SMALLEST_P < expected < 1
    for sign in (1, -1):
        assert crossed_p(sign * grid) == pytest.approx(expected, abs=CLOSE)


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0], [0.5, -0.25, 0.25, 0.5, 1.0], [-1.0, 1.0], [0.1] * 6])
def test_few_signs_are_enumerated(values: list[float]) -> None:
    sums = [
        abs(math.fsum(s * v for s, v in zip(signs, values, strict=True)))
        for signs in product((-1, 1), repeat=len(values))
    ]
    expected = np.mean([found >= abs(math.fsum(values)) - CLOSE for found in sums])
    assert sign_flip_p(np.array(values), seed=0) == expected
    ties = [0.0] * 2 * EXACT_UP_TO
    assert sign_flip_p(np.array([*ties, *values]), seed=0) == expected, "a tie flips to itself"


def test_the_permutation_test_is_scipys() -> None:
    few = np.random.default_rng(8).normal(0.4, 1.0, size=EXACT_UP_TO)
    many = np.random.default_rng(9).normal(0.1, 1.0, size=60)

    def theirs(values: NDArray[np.float64]) -> float:
        return stats.permutation_test(
            (values,),
            lambda x, axis: x.mean(axis=axis),
            permutation_type="samples",
            n_resamples=2**EXACT_UP_TO,
            vectorized=True,
            rng=0,
        ).pvalue

    assert sign_flip_p(few, seed=0) == pytest.approx(theirs(few), abs=CLOSE)
    assert sign_flip_p(many, seed=0) == pytest.approx(theirs(many), abs=2 * MONTE_CARLO)


@pytest.mark.parametrize("num", range(EXACT_UP_TO + 1, EXACT_UP_TO + 9))
@pytest.mark.parametrize("turn", [1, -1])
def test_every_sign_is_drawn_whatever_its_place(num: int, turn: int) -> None:
    """Two large differences of opposite sign cancel in half of the patterns: p is 1/2, wherever they are."""
    values = np.array([0.01] * (num - 2) + [1.0, -1.0])[::turn]
    assert sign_flip_p(values, seed=0) == pytest.approx(0.5, abs=MONTE_CARLO)
    assert sign_flip_p(values, seed=0) == sign_flip_p(values, seed=0) != sign_flip_p(values, seed=1)


def test_drawn_signs_agree_with_enumerated_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(10).normal(0.4, 1.0, size=EXACT_UP_TO - 1)
    exact = sign_flip_p(values, seed=0)
    monkeypatch.setattr(statistics, "EXACT_UP_TO", 0)
    assert sign_flip_p(values, seed=0) == pytest.approx(exact, abs=MONTE_CARLO)


@pytest.mark.invariant("Intervals over seeds and problems cover; p is uniform under the null.")
@pytest.mark.parametrize("size", [EXACT_UP_TO - 2, EXACT_UP_TO + 4])
def test_under_the_null_p_is_uniform(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "FLIPS", 999)
    drawn = np.random.default_rng(11).standard_t(3, size=(SIMULATIONS, size))
    ps = [sign_flip_p(values, seed=i) for i, values in enumerate(drawn)]
    assert stats.kstest(ps, "uniform").pvalue > UNIFORM


def test_no_p_is_0_and_the_smallest_over_seeds_is_known() -> None:
    certain = np.ones((5, 100))
    assert sign_flip_p(certain.mean(0), seed=0) == 1 / (1 + FLIPS)
    assert seeds_p(certain, seed=0) == 0.0625
    assert seeds_p(certain[:1], seed=0) == 1
    assert seeds_p(np.ones((8, 3)), seed=0) == 2**-7


def test_holm_has_worked_values() -> None:
    # Sorted: 4 * 0.005, 3 * 0.01, 2 * 0.03 and then 0.04, which may not fall below 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02], abs=CLOSE)
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_holm_keeps_the_chance_of_any_false_claim() -> None:
    ps = np.random.default_rng(12).random((2000, 5))
    any_claim = np.mean([min(holm(row)) < LEVEL for row in ps.tolist()])
    exact = 1 - (1 - LEVEL / 5) ** 5
    assert any_claim == pytest.approx(exact, abs=4 * math.sqrt(LEVEL / 2000))
