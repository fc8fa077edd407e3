"""Tuning: every method gets the same number of trials, over learning rates and then over its own settings.

The second wave has `extra_trials`: each of the method's own settings at the best rate. The rest of this budget goes
to further rates, halfway to the best rate's neighbours, or beyond it if it is at the edge. Then, outside the budget,
up to `beyond` rates follow a best rate that is still the highest or lowest tried.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from allo.compare.methods import Resolved
from allo.compare.trials import RATE, Overrides, Trial
from allo.errors import UserError
from allo.recipe.compare import Compare

Result = dict[str, Any]
Results = Callable[[Trial], Result | None]
"""Function that returns a trial's result; None if there is none yet."""


def next_trials(method: Resolved, compare: Compare, results: Results) -> list[Trial]:
    """Return the next trials, given the results; none once the method is tuned, or has no choice."""
    tried: list[Overrides] = []
    while wave := _wave(method, compare, results, tried):
        trials = _trials(method, wave, compare)
        if any(results(trial) is None for trial in trials):
            return trials
        tried += wave
    return []


def tuned(method: Resolved, compare: Compare, results: Results) -> Overrides:
    """Return the settings with the best validation accuracy, averaged over tuning seeds.

    Raises `UserError` if every trial failed.
    """
    if not _is_choice(compare):
        return {RATE: compare.rates[0]}
    tried: list[Overrides] = []
    while wave := _wave(method, compare, results, tried):
        tried += wave
    return _best(tried, method, compare, results)


def _wave(
    method: Resolved, compare: Compare, results: Results, tried: Sequence[Overrides]
) -> list[Overrides]:
    """Return the settings to try after `tried`, whose results exist."""
    rates = sorted(compare.rates)
    if not _is_choice(compare):
        return []
    if not tried:
        return [{RATE: rate} for rate in rates]
    best = _best(tried, method, compare, results)
    if len(tried) == len(rates) and compare.extra_trials:
        own = [{**best, **settings} for settings in method.settings][: compare.extra_trials]
        further = _further_rates(best[RATE], rates, compare.extra_trials - len(own))
        return [*own, *({RATE: rate} for rate in further)]
    seen = sorted({settings[RATE] for settings in tried})
    beyond = len(tried) - len(rates) - compare.extra_trials
    if len(rates) > 1 and beyond < compare.beyond and best[RATE] in (seen[0], seen[-1]):
        step = _step(rates)
        return [{**best, RATE: best[RATE] * step if best[RATE] == seen[-1] else best[RATE] / step}]
    return []


def _is_choice(compare: Compare) -> bool:
    return len(compare.rates) > 1 or compare.extra_trials > 0


def accuracy(result: Result | None) -> float:
    """Return a tuning trial's validation accuracy: sampled, or greedy if nothing was sampled."""
    assert result is not None
    if "failed" in result:
        return -math.inf
    found = result["sets"]["validation"]
    if found["sampled"] is None:
        return sum(found["greedy"]) / len(found["greedy"])
    return sum(found["sampled"]["correct"]) / (found["sampled"]["of"] * len(found["prompts"]))


def _best(candidates: Sequence[Overrides], method: Resolved, compare: Compare, results: Results) -> Overrides:
    def score(settings: Overrides) -> float:
        found = [accuracy(results(trial)) for trial in _trials(method, [settings], compare)]
        return sum(found) / len(found)

    best = max(candidates, key=score)
    if score(best) == -math.inf:
        why = results(_trials(method, [best], compare)[0]) or {}
        raise UserError(
            f"compare: every tuning trial of {method.name!r} failed; one of them: {why.get('failed')}"
        )
    return best


def _trials(method: Resolved, settings: Sequence[Overrides], compare: Compare) -> list[Trial]:
    return [Trial(method, one, seed, "tune") for one in settings for seed in compare.tuning_seeds]


def _further_rates(best: float, rates: Sequence[float], number: int) -> list[float]:
    """Return untried rates: beyond the edge if the best rate is there, otherwise halfway to its neighbours."""
    if len(rates) < 2:
        return []
    step = _step(rates)
    if best == rates[-1]:
        candidates = [best * step, best / math.sqrt(step), best * math.sqrt(step)]
    elif best == rates[0]:
        candidates = [best / step, best * math.sqrt(step), best / math.sqrt(step)]
    else:
        candidates = [best * math.sqrt(step), best / math.sqrt(step), best * step**0.25]
    return candidates[:number]


def _step(rates: Sequence[float]) -> float:
    """Return the mean factor from one rate to the next."""
    return float((rates[-1] / rates[0]) ** (1 / (len(rates) - 1)))
