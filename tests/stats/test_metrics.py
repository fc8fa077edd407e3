"""Intervals have their published values and their coverage; pass@k is what enumeration says."""

import itertools
import math

import numpy as np
import pytest

from allo.stats.metrics import bootstrap, pass_at_k, wilson

# Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3: (right, all, low, high).
NEWCOMBE = [
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
]
FOUR_DIGITS = 5e-5
CLOSE = 1e-12


@pytest.mark.parametrize(("hits", "num", "low", "high"), NEWCOMBE)
def test_wilson_has_its_published_values(hits: int, num: int, low: float, high: float) -> None:
    estimate = wilson([True] * hits + [False] * (num - hits))
    assert (estimate.value, estimate.num) == (hits / num, num)
    assert (estimate.low, estimate.high) == (
        pytest.approx(low, abs=FOUR_DIGITS),
        pytest.approx(high, abs=FOUR_DIGITS),
    )


def test_wilson_is_its_formula_and_stays_inside_0_and_1() -> None:
    z, n, p = 1.959963984540054, 10, 0.8
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    estimate = wilson([True] * 8 + [False] * 2)
    assert (estimate.low, estimate.high) == (
        pytest.approx(middle - half, abs=CLOSE),
        pytest.approx(middle + half, abs=CLOSE),
    )
    assert wilson([True] * 5).high == 1 and wilson([False] * 5).low == 0


def test_bootstraps_value_is_the_mean_over_observations_not_over_groups() -> None:
    estimate = bootstrap([[1.0, 1.0, 1.0], [0.0]], seed=0)
    assert (estimate.value, estimate.num) == (3 / 4, 4)
    assert estimate.low == 0 and estimate.high == 1, "either group may be the only one drawn"


def test_the_same_seed_gives_the_same_interval() -> None:
    groups = np.random.default_rng(0).random((20, 3)).tolist()
    assert bootstrap(groups, seed=1) == bootstrap(groups, seed=1)
    assert bootstrap(groups, seed=1) != bootstrap(groups, seed=2)


def test_the_same_value_everywhere_has_no_spread() -> None:
    estimate = bootstrap([[0.5, 0.5]] * 4, seed=0)
    assert (estimate.low, estimate.value, estimate.high) == (0.5, 0.5, 0.5)


def test_bootstraps_bounds_are_a_normals_for_many_groups() -> None:
    """Means over 30 seeds of each bound, in standard errors of the mean: minus and plus 1.96."""
    values = np.random.default_rng(1).normal(size=400)
    error = values.std() / math.sqrt(len(values))
    bounds = [bootstrap([[value] for value in values.tolist()], seed=seed) for seed in range(30)]
    low, high = (
        (np.mean([getattr(one, side) for one in bounds]) - values.mean()) / error for side in ("low", "high")
    )
    assert (low, high) == (pytest.approx(-1.96, rel=0.03), pytest.approx(1.96, rel=0.03))


def test_bootstrap_covers_the_truth_where_samples_of_a_prompt_agree() -> None:
    """Prompts are easy or hard, so that 8 samples of one say little more than one sample does."""
    rng = np.random.default_rng(0)
    trials, prompts, samples = 200, 60, 8
    covered = naive = 0
    for trial in range(trials):
        chance = rng.choice([0.05, 0.95], size=prompts)  # mean 0.5
        right = rng.random((prompts, samples)) < chance[:, None]
        estimate = bootstrap(right.astype(float).tolist(), seed=trial)
        covered += estimate.low <= 0.5 <= estimate.high
        one_by_one = wilson(right.reshape(-1).tolist())
        naive += one_by_one.low <= 0.5 <= one_by_one.high
    # 95% within 4 standard errors of sqrt(.95 * .05 / 200) = 0.015
    assert 0.89 <= covered / trials <= 1
    assert naive / trials < 0.75, "taking samples for independent would promise too much"


@pytest.mark.parametrize(("num_samples", "k"), [(1, 1), (4, 1), (5, 2), (6, 3), (6, 6)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_sample(num_samples: int, k: int) -> None:
    num_correct = list(range(num_samples + 1))
    shares = []
    for hits in num_correct:
        samples = [True] * hits + [False] * (num_samples - hits)
        draws = list(itertools.combinations(samples, k))
        shares.append(sum(any(draw) for draw in draws) / len(draws))
    expected = sum(shares) / len(shares)
    assert pass_at_k(num_correct, num_samples=num_samples, k=k) == pytest.approx(expected, abs=CLOSE)


def test_pass_at_1_is_the_accuracy_and_more_draws_never_hurt() -> None:
    num_correct = [0, 2, 8, 5]
    chances = [pass_at_k(num_correct, num_samples=8, k=k) for k in range(1, 9)]
    assert chances[0] == pytest.approx(sum(num_correct) / (8 * 4), abs=CLOSE)
    assert chances == sorted(chances) and chances[-1] == 3 / 4
