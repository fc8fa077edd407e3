"""The figures of verdicts: win rates, the judge's leaning to a position, and the win rate at equal length."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit

from allo.stats.length_control import PRIOR_SD, fit, length_controlled
from allo.stats.win_rate import agreement, bounds, outcomes, position_bias, win_rate

NUM = 1000
EXACT = 1e-9
FITTED = 1e-5  # scipy's own tolerance
OF_RATES = 0.05  # between a planted rate and one estimated from NUM prompts: more than three standard errors
APART = 0.15  # at least as far the raw rate is from the planted one
RUNS, COVERS = 60, 0.87  # of 60 intervals at 95%, 52 or fewer hold the truth once in 100 times


def always_first(num: int) -> np.ndarray:
    return np.tile([1.0, 0.0], (num, 1))


def test_who_always_prefers_the_first_answer_finds_nothing_and_is_wholly_biased() -> None:
    scores = always_first(20)
    found = win_rate(scores, seed=0)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)
    assert position_bias(scores) == 1 and position_bias(1 - scores) == -1
    assert agreement(scores) == 0
    assert outcomes(scores).ties == 20


def test_who_judges_the_answers_alone_is_not_biased_and_agrees_with_itself() -> None:
    wins = np.random.default_rng(0).integers(2, size=NUM).astype(float)
    scores = np.stack([wins, wins], axis=1)
    assert position_bias(scores) == 0 and agreement(scores) == 1
    assert win_rate(scores, seed=0).value == pytest.approx(wins.mean(), abs=EXACT)


def test_ties_are_half_a_win_and_say_nothing_of_positions() -> None:
    scores = np.full((7, 2), 0.5)
    assert win_rate(scores, seed=0).value == 0.5 and position_bias(scores) is None and agreement(scores) == 1
    mixed = np.array([[1.0, 0.5], [0.5, 0.0], [1.0, 1.0]])
    found = outcomes(mixed)
    assert (found.wins, found.ties, found.losses) == (2, 0, 1)
    assert win_rate(mixed, seed=0).value == pytest.approx(4 / 6, abs=EXACT)


@pytest.mark.invariant(
    "Both orders of a prompt are one unit; the rate at equal length is the planted one where the judge likes length."
)
def test_both_orders_of_a_prompt_are_one_unit() -> None:
    """The second order repeats the first here, so that it must not make the interval narrower."""
    wins = np.random.default_rng(0).integers(2, size=200).astype(float)
    twice = win_rate(np.stack([wins, wins], axis=1), seed=0)
    once = win_rate(wins[:, None], seed=0)
    assert (twice.low, twice.high) == (once.low, once.high)


def test_the_bounds_are_the_rates_with_what_is_unknown_lost_and_won() -> None:
    scores = np.array([[1.0, 1.0], [0.5, 0.0]])
    assert bounds(scores, num_unknown=0) == (0.625, 0.625)
    assert bounds(scores, num_unknown=2) == (1.25 / 4, 3.25 / 4)


def planted(
    theta: float, phi: float, *, longer: float, num: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Preferences of a judge that likes length, of both orders, and differences with a mean of `longer` of their sd."""
    differences = rng.normal(longer * 400, 400, size=num)
    chances = expit(theta + phi * np.tanh(differences / differences.std(ddof=1)))
    return rng.binomial(2, chances) / 2, differences


@pytest.mark.invariant(
    "Both orders of a prompt are one unit; the rate at equal length is the planted one where the judge likes length."
)
@pytest.mark.parametrize(("theta", "longer"), [(0.0, 1.0), (-0.8, 1.0), (0.6, -1.0), (0.0, 2.0)])
def test_the_planted_rate_comes_back_where_the_judge_likes_length_and_the_raw_rate_does_not(
    theta: float, longer: float
) -> None:
    own = np.random.default_rng(1)
    preferences, differences = planted(theta, 2.0, longer=longer, num=2 * NUM, rng=own)
    found = length_controlled(preferences, differences, seed=0)
    assert found is not None
    assert found.win_rate.value == pytest.approx(expit(theta), abs=OF_RATES)
    assert abs(preferences.mean() - expit(theta)) > APART
    assert found.win_rate.low < expit(theta) < found.win_rate.high
    assert found.effect == pytest.approx(2.0, abs=0.5)


def test_who_prefers_the_longer_answer_and_nothing_else_sees_two_equal_models() -> None:
    differences = np.random.default_rng(2).normal(300, 400, size=NUM)
    preferences = (differences > 0).astype(float)
    found = length_controlled(preferences, differences, seed=0)
    assert found is not None
    assert found.win_rate.value == pytest.approx(0.5, abs=OF_RATES)
    assert preferences.mean() > 0.5 + APART and found.effect > PRIOR_SD


def test_the_interval_covers() -> None:
    own = np.random.default_rng(3)
    held = 0
    for _ in range(RUNS):
        preferences, differences = planted(0.5, 1.0, longer=0.5, num=150, rng=own)
        found = length_controlled(preferences, differences, seed=0)
        assert found is not None
        held += found.win_rate.low <= expit(0.5) <= found.win_rate.high
    assert held >= COVERS * RUNS


@given(st.integers(0, 2**32 - 1), st.floats(-3, 3), st.floats(-3, 3))
def test_the_baseline_wins_what_the_model_does_not(seed: int, theta: float, phi: float) -> None:
    preferences, differences = planted(theta, phi, longer=0.3, num=40, rng=np.random.default_rng(seed))
    ones, features = np.ones((1, 40)), np.stack([np.ones(40), np.tanh(differences / 400)], axis=1)
    mirrored = features * np.array([1.0, -1.0])
    found = fit(features, preferences, ones)[0]
    assert fit(mirrored, 1 - preferences, ones)[0] == pytest.approx(found * np.array([-1, 1]), abs=1e-8)


def test_the_fit_is_the_one_that_scipy_finds() -> None:
    preferences, differences = planted(0.4, 1.5, longer=0.5, num=300, rng=np.random.default_rng(4))
    features = np.stack([np.ones(300), np.tanh(differences / 400)], axis=1)
    counts = np.random.default_rng(5).integers(3, size=(2, 300)).astype(float)

    def loss(coefficients: np.ndarray, counts: np.ndarray) -> float:
        chances = expit(features @ coefficients)
        likelihood = preferences * np.log(chances) + (1 - preferences) * np.log1p(-chances)
        return float(coefficients @ coefficients / (2 * PRIOR_SD**2) - counts @ likelihood)

    for found, count in zip(fit(features, preferences, counts), counts, strict=True):
        assert found == pytest.approx(minimize(loss, np.zeros(2), args=(count,)).x, abs=FITTED)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_verdicts_that_are_all_alike_have_a_rate_and_an_interval(share: float) -> None:
    differences = np.random.default_rng(6).normal(0, 400, size=50)
    found = length_controlled(np.full(50, share), differences, seed=0)
    assert found is not None
    rate = found.win_rate
    assert 0 < rate.low <= rate.value <= rate.high < 1
    assert rate.value == pytest.approx(share, abs=OF_RATES)
    if share == 0.5:
        assert rate.low == rate.high == 0.5 and found.effect == 0


@pytest.mark.parametrize("differences", [np.zeros(20), np.full(20, 5.0), np.ones(1)], ids=["0", "5", "one"])
def test_lengths_that_never_vary_cannot_be_controlled_for(differences: np.ndarray) -> None:
    assert length_controlled(np.ones(len(differences)), differences, seed=0) is None
