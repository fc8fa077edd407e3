"""p holds in the tail and in the family: simulated nulls on crossed grids of few seeds."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from allo.stats.statistics import (
    SMALLEST_P,
    MeanSquares,
    crossed_p,
    crossed_spread,
    holm,
    mean_squares,
    spread_of_mean,
)

NUM_PROBLEMS = 400
# Means and mean squares of normal grids are drawn by themselves, so a null costs five random numbers.
NULLS = 200_000
FAMILIES, TESTS = 20_000, 18  # nine methods on two sets
CLOSE = 1e-12
STANDARD_ERRORS = 4


def null_ps(num_seeds: int, seeds: float, problems: float, *, num: int, seed: int) -> NDArray[np.float64]:
    """p of `num` grids of mean 0; `seeds` and `problems` are the expected mean squares over the interaction's."""
    rng = np.random.default_rng(seed)
    free, of_problems = num_seeds - 1, NUM_PROBLEMS - 1
    squares = MeanSquares(
        seeds * rng.chisquare(free, num) / free,
        problems * rng.chisquare(of_problems, num) / of_problems,
        rng.chisquare(free * of_problems, num) / (free * of_problems),
        (num_seeds, NUM_PROBLEMS),
    )
    truth = (seeds + problems - 1) / (num_seeds * NUM_PROBLEMS)
    variance, freedom = crossed_spread(squares, doubt=SMALLEST_P)
    return 2 * stats.t.sf(np.abs(rng.normal(size=num)) * math.sqrt(truth) / np.sqrt(variance), freedom)


@pytest.mark.parametrize("num_seeds", [3, 5, 10])
@pytest.mark.parametrize("seeds", [1, 2, 5, 20])
@pytest.mark.parametrize("problems", [1, 3, 20])
def test_p_is_never_too_small_in_the_tail(num_seeds: int, seeds: float, problems: float) -> None:
    ps = null_ps(num_seeds, seeds, problems, num=NULLS, seed=1)
    for level in (0.05, 0.01, 0.001):
        chance = STANDARD_ERRORS * math.sqrt(level / NULLS)
        assert np.mean(ps < level) <= level + chance, f"P(p < {level})"


@pytest.mark.parametrize("num_seeds", [3, 5, 10])
@pytest.mark.parametrize("seeds", [1, 2, 5, 20])
def test_a_family_makes_a_false_claim_as_rarely_as_stated(num_seeds: int, seeds: float) -> None:
    ps = null_ps(num_seeds, seeds, 1, num=FAMILIES * TESTS, seed=2).reshape(FAMILIES, TESTS)
    smallest = TESTS * ps.min(1)  # a family's smallest corrected p
    assert min(holm(ps[0].tolist())) == pytest.approx(min(1, smallest[0]), abs=CLOSE)
    for level in (0.05, 0.01, 0.001):
        chance = STANDARD_ERRORS * math.sqrt(level / FAMILIES)
        assert np.mean(smallest < level) <= level + chance, f"family-wise error at {level}"


def test_many_seeds_and_problems_that_vary_most_cost_little_power() -> None:
    """Ten seeds whose models hardly differ: the problems' degrees of freedom count, not nine."""
    ps = null_ps(10, 1, 20, num=NULLS, seed=3)
    assert np.mean(ps < 0.05) >= 0.04


def test_mean_squares_are_those_of_the_model_that_is_simulated() -> None:
    rng = np.random.default_rng(4)
    seeds, problems, rest = 0.3, 0.7, 1.1
    found = [
        mean_squares(
            seeds * rng.normal(size=(4, 1))
            + problems * rng.normal(size=(1, 30))
            + rest * rng.normal(size=(4, 30))
        )
        for _ in range(2000)
    ]
    expected = {
        "of_seeds": 30 * seeds**2 + rest**2,
        "of_problems": 4 * problems**2 + rest**2,
        "interaction": rest**2,
    }
    for name, value in expected.items():
        own = np.array([getattr(one, name) for one in found])
        assert own.mean() == pytest.approx(value, abs=STANDARD_ERRORS * own.std() / math.sqrt(len(own)))


def test_a_grid_has_the_spread_of_its_mean_squares_whatever_their_weights() -> None:
    grid = np.array([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0]])
    # Row means 3/4, 1/4, 1/2; column means 2/3, 0, 1, 1/3; grand mean 1/2; total sum of squares 3.
    of_seeds = 4 * (2 * 0.25**2) / 2
    of_problems = 3 * sum((mean - 0.5) ** 2 for mean in (2 / 3, 0, 1, 1 / 3)) / 3
    interaction = (3 - 2 * of_seeds - 3 * of_problems) / 6
    found = spread_of_mean(grid, doubt=0.05)
    assert found.variance == pytest.approx((of_seeds + of_problems - interaction) / 12, abs=CLOSE)
    limit = of_seeds * 2 / stats.chi2.ppf(0.05, 2)
    share = limit / (limit + of_problems - interaction)
    assert found.freedom == pytest.approx(2 / share**2, abs=CLOSE)


def test_the_seeds_mean_square_counts_even_below_the_interactions() -> None:
    """Seeds that agree by chance say little: the variance stays, and the degrees of freedom are the seeds'."""
    grid = np.array([[0.0, 1.0, 0.5, 0.5], [1.0, 0.0, 0.5, 0.5], [0.5, 0.5, 0.0, 1.0]]) + 0.2
    grid[0] += 0.01
    squares = mean_squares(grid)
    assert squares.of_seeds < squares.interaction and squares.of_problems < squares.interaction
    found = spread_of_mean(grid, doubt=SMALLEST_P)
    assert found.variance == pytest.approx(squares.of_seeds / grid.size, abs=CLOSE)
    assert found.freedom == pytest.approx(2, abs=CLOSE)


def test_no_smaller_p_is_given_than_simulations_reach() -> None:
    assert crossed_p(np.ones((10, 50)) + 1e-6 * np.random.default_rng(5).normal(size=(10, 50))) == SMALLEST_P
    assert crossed_p(np.ones((3, 4))) == SMALLEST_P
