"""Tuning: every method gets as many trials, first over learning rates, then over its own settings.

The second wave holds `extra_trials`: at the best rate, each of the method's own settings in turn; what is left of
the budget goes to further rates, halfway beside the best one, or beyond it where it lies at the edge. Then, outside
of the budget, a method whose best rate is still the highest or the lowest tried is followed `beyond` it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from allo.compare.methods import Resolved
from allo.compare.trials import RATE, Settings, Trial
from allo.errors import UserError
from allo.recipe.compare import Compare

Result = dict[str, Any]
Results = Callable[[Trial], Result | None]
"""A trial's result; None where it is not there yet."""


def next_trials(method: Resolved, compare: Compare, results: Results) -> list[Trial]:
    """What to try next, given what is there; nothing once the method is tuned, or has no choice."""
    tried: list[Settings] = []
    while wave := _wave(method, compare, results, tried):
        trials = _trials(method, wave, compare)
        if any(results(trial) is None for trial in trials):
            return trials
        tried += wave
    return []


def tuned(method: Resolved, compare: Compare, results: Results) -> Settings:
    """The settings with the best accuracy on the validation problems, the mean over tuning seeds.

    Raises `UserError` where every trial failed.
    """
    if not _is_choice(compare):
        return {RATE: compare.rates[0]}
    tried: list[Settings] = []
    while wave := _wave(method, compare, results, tried):
        tried += wave
    return _best(tried, method, compare, results)


def _wave(method: Resolved, compare: Compare, results: Results, tried: Sequence[Settings]) -> list[Settings]:
    """The settings to try after `tried`, the results of which are there."""
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
    """Of a tuning trial: sampled accuracy on the validation problems, greedy where nothing was sampled."""
    assert result is not None
    if "failed" in result:
        return -math.inf
    found = result["sets"]["validation"]
    if found["sampled"] is None:
        return sum(found["greedy"]) / len(found["greedy"])
    return sum(found["sampled"]["correct"]) / (found["sampled"]["of"] * len(found["prompts"]))


def _best(candidates: Sequence[Settings], method: Resolved, compare: Compare, results: Results) -> Settings:
    def score(settings: Settings) -> float:
        found = [accuracy(results(trial)) for trial in _trials(method, [settings], compare)]
        return sum(found) / len(found)

    best = max(candidates, key=score)
    if score(best) == -math.inf:
        why = results(_trials(method, [best], compare)[0]) or {}
        raise UserError(
            f"compare: every tuning trial of {method.name!r} failed; one of them: {why.get('failed')}"
        )
    return best


def _trials(method: Resolved, settings: Sequence[Settings], compare: Compare) -> list[Trial]:
    return [Trial(method, one, seed, "tune") for one in settings for seed in compare.tuning_seeds]


def _further_rates(best: float, rates: Sequence[float], number: int) -> list[float]:
    """Rates that were not tried: beyond the edge where the best lies there, else halfway to its neighbours."""
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
    """The mean factor from one rate to the next."""
    return float((rates[-1] / rates[0]) ** (1 / (len(rates) - 1)))
