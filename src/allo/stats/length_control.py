"""The win rate at equal length: a judge's preferences if both answers were equally long.

The idea is AlpacaEval 2's (arXiv 2404.04475, section 3). A logistic model of the preference has a term for the model
and a term for the difference in length. It is evaluated at a difference of zero. Here

    P(the model's answer is preferred) = sigmoid(theta + phi * tanh(difference / sd(difference)))

and the controlled win rate is sigmoid(theta). There are two departures from the paper. No term models an
instruction's difficulty, which would need many models judged on the same prompts, so one theta covers all
instructions. Both coefficients have a normal prior of mean 0 and `PRIOR_SD`; theirs are regularized by
cross-validation and against answers that exploit length. The prior keeps separable verdicts finite (winning every
prompt gives a rate below 1). It pulls both coefficients towards 0, slightly if there are hundreds of prompts. A
preference may be any share between 0 and 1.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from allo.stats.metrics import CONFIDENCE, RESAMPLES, Estimate
from allo.stats.statistics import drawn_counts

Floats = NDArray[np.float64]

PRIOR_SD = 2.5
"""In log-odds, for both coefficients: 2.5 is odds of 12 to 1 (Gelman et al. 2008, Annals of Applied Statistics 2, 1360)."""
_LARGEST_STEP = 2.0  # of a coefficient per Newton step, which might otherwise overshoot
_CONVERGED = 1e-10
_MOST_STEPS = 200
_AT_ONCE = 1 << 20  # entries of (resamples, prompts) fitted at once


@dataclass(frozen=True)
class LengthControlled:
    """A win rate; `effect` is phi, the log-odds that an answer gains by being much longer than the other."""

    win_rate: Estimate
    effect: float


def length_controlled(preferences: Floats, differences: Floats, *, seed: int) -> LengthControlled | None:
    """Return the model's controlled win rate, with an interval from resampled prompts (percentile bootstrap).

    `preferences` (prompts,): in [0, 1]. `differences` (prompts,): length of the model's answer minus the baseline's.
    None if all differences are equal: the effects of model and length then cannot be separated.
    """
    deviation = differences.std(ddof=1) if len(differences) > 1 else 0.0
    if deviation == 0:
        return None
    features = np.stack([np.ones(len(differences)), np.tanh(differences / deviation)], axis=1)
    theta, phi = fit(features, preferences, np.ones((1, len(preferences))))[0]
    counts = drawn_counts(len(preferences), resamples=RESAMPLES, rng=np.random.default_rng(seed))
    parts = np.array_split(counts, -(-counts.size // _AT_ONCE))
    drawn = np.concatenate([fit(features, preferences, part.astype(float)) for part in parts])[:, 0]
    low, high = expit(np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]))
    rate = Estimate(float(expit(theta)), float(low), float(high), len(preferences))
    return LengthControlled(rate, float(phi))


def fit(features: Floats, targets: Floats, counts: Floats) -> Floats:
    """Fit coefficients (fits, features) of a logistic model by posterior mode, with Newton's method.

    `features` (rows, features); `targets` (rows,) in [0, 1]; `counts` (fits, rows): the weight of each row in each
    fit. The posterior is strictly concave, so the solution is unique even for separable rows.
    """
    coefficients = np.zeros((len(counts), features.shape[1]))
    prior = np.eye(features.shape[1]) / PRIOR_SD**2
    for _ in range(_MOST_STEPS):
        chances = expit(coefficients @ features.T)
        gradient = (counts * (targets - chances)) @ features - coefficients @ prior
        weights = counts * chances * (1 - chances)
        information = np.einsum("fr,ri,rj->fij", weights, features, features, optimize=True) + prior
        step = np.linalg.solve(information, gradient[..., None])[..., 0]
        step = np.clip(step, -_LARGEST_STEP, _LARGEST_STEP)
        coefficients += step
        if np.abs(step).max() < _CONVERGED:
            return coefficients
    raise AssertionError("Newton's method did not converge on a strictly concave function")
