"""KL at equal accuracy and the range of rates that serve: exact on worked curves, intervals that cover."""

import numpy as np
import pytest
from numpy.typing import NDArray

from allo.stats.rate_curves import RateCurve, kl_at_accuracy, kl_at_equal_accuracy, robustness

CLOSE = 1e-12
# At least so many intervals of 100 simulations hold the truth; 0.95 is nominal.
SIMULATIONS, COVERED = 100, 88
PROBLEMS = 200


def same(accuracy: float, num: int = 10) -> NDArray[np.float64]:
    """Every problem is answered right with this share, so that drawing problems changes nothing."""
    return np.full(num, accuracy)


def curve(accuracies: list[float], kls: list[float], *, error: float = 0.0) -> RateCurve:
    return RateCurve(
        rates=np.geomspace(1e-5, 1e-3, len(accuracies)),
        right=np.stack([same(accuracy) for accuracy in accuracies]),
        kl=np.array(kls),
        kl_error=np.full(len(kls), error),
    )


def test_between_two_rates_the_kl_lies_on_the_straight_line() -> None:
    assert kl_at_accuracy([0.4, 0.6], [0.0, 0.2], 0.45) == pytest.approx(0.05, abs=CLOSE)


def test_where_an_accuracy_is_reached_twice_the_lesser_kl_counts() -> None:
    accuracy, kl = [0.4, 0.6, 0.5], [0.0, 0.2, 3.0]
    assert kl_at_accuracy(accuracy, kl, 0.5) == pytest.approx(0.1, abs=CLOSE)
    assert kl_at_accuracy([0.5, 0.5], [0.3, 0.2], 0.5) == 0.2


def test_an_accuracy_that_is_never_reached_has_no_kl() -> None:
    assert kl_at_accuracy([0.4, 0.6], [0.0, 0.2], 0.61) is None


def test_methods_are_compared_at_the_lower_of_their_best_accuracies() -> None:
    method, reference = curve([0.5, 0.6], [0.1, 0.3]), curve([0.6, 0.8], [0.02, 0.1])
    found = kl_at_equal_accuracy(method, reference, start=same(0.4), seed=0)
    assert found is not None
    assert (found.accuracy, found.kl, found.reference_kl) == pytest.approx((0.6, 0.3, 0.02), abs=CLOSE)
    assert (found.ratio, found.low, found.high) == pytest.approx((15, 15, 15), rel=1e-9)


def test_a_method_that_gains_nothing_has_no_equal_accuracy() -> None:
    assert kl_at_equal_accuracy(curve([0.3], [1.0]), curve([0.6], [0.1]), start=same(0.4), seed=0) is None


def test_no_interval_where_many_draws_gain_nothing() -> None:
    rng = np.random.default_rng(0)
    start = (rng.random(50) < 0.5).astype(float)
    barely = start.copy()
    barely[np.flatnonzero(start == 0)[:1]] = 1.0  # one problem more: without it in the draw nothing is gained
    lucky = RateCurve(np.array([1e-4]), barely[None, :], np.array([0.1]), np.array([0.0]))
    found = kl_at_equal_accuracy(lucky, lucky, start=start, seed=0)
    assert found is not None and found.ratio == 1
    assert found.low is None and found.high is None


def test_the_interval_of_the_ratio_covers() -> None:
    """The method needs twice the reference's KL at every accuracy; both peak far apart, so the peak is sure."""
    rng = np.random.default_rng(1)
    rates, true_kl = np.array([1.0, 2.0, 3.0]), np.array([0.02, 0.05, 0.1])
    accuracies = {"method": (0.5, 0.55, 0.6), "reference": (0.5, 0.6, 0.75), "start": 0.45}
    # At 0.6, the reference stands at its second rate: 0.05; the method at its third: 0.1.
    covered = 0
    for i in range(SIMULATIONS):
        curves = []
        for name in ("method", "reference"):
            chance = np.array(accuracies[name])[:, None]
            right = rng.binomial(16, np.broadcast_to(chance, (3, PROBLEMS))) / 16
            curves.append(RateCurve(rates, right, rng.normal(true_kl, 0.1 * true_kl), 0.1 * true_kl))
        start = rng.binomial(16, accuracies["start"], size=PROBLEMS) / 16
        found = kl_at_equal_accuracy(*curves, start=start, seed=i, resamples=300)
        assert found is not None and found.low is not None and found.high is not None
        covered += found.low <= 2 <= found.high
    assert covered >= COVERED


def test_the_range_of_rates_has_no_gap_and_says_where_it_is_open() -> None:
    rates = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    right = np.stack([same(a) for a in (0.60, 0.50, 0.59, 0.60, 0.58)])
    found = robustness(rates, right, seed=0)  # the best is the first of two equals
    assert (found.lowest, found.highest, found.ratio) == (1, 1, 1)
    assert found.open_below and not found.open_above
    right[3] += 0.001
    found = robustness(rates, right, seed=0)
    assert (found.lowest, found.highest, found.ratio) == (4, 8, 2), "0.58 is more than 2 points below"
    assert not found.open_below and not found.open_above
    right[4] = right[3] - 0.02
    found = robustness(rates, right, seed=0)
    assert (found.ratio, found.open_above) == (4, True), "a loss of just 2 points is within 2 points"


def test_the_ranges_interval_holds_ratios_of_tried_rates() -> None:
    rng = np.random.default_rng(2)
    rates = np.array([1.0, 3.0, 10.0, 30.0])
    right = (rng.random((4, 200)) < np.array([[0.5], [0.58], [0.6], [0.57]])).astype(float)
    found = robustness(rates, right, seed=0)
    ratios = {high / low for low in rates for high in rates if high >= low}
    assert {found.low, found.ratio, found.high} <= ratios
    assert found.low < found.high, "200 problems do not settle 2 points"
