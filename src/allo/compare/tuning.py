"""Tuning: every method gets as many trials, first over learning rates, then over its own settings.

The second wave holds `extra_trials`: at the best rate, each of the method's own settings in turn; what is left of
the budget goes to further rates, halfway beside the best one, or beyond it where it lies at the edge.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from allo.compare.methods import Resolved
from allo.compare.trials import RATE, Settings, Trial
from allo.errors import UserError
from allo.recipe.compare import Compare

Result = dict[str, Any]


def first_wave(method: Resolved, compare: Compare) -> list[Trial]:
    """The rates, under the method's settings as they stand; nothing where there is no choice."""
    if not _is_choice(compare):
        return []
    return _trials(method, [{RATE: rate} for rate in sorted(compare.rates)], compare)


def second_wave(method: Resolved, compare: Compare, result: Callable[[Trial], Result]) -> list[Trial]:
    """The method's own settings at the best rate of the first wave, and further rates."""
    if not _is_choice(compare):
        return []
    rate = _best([{RATE: rate} for rate in compare.rates], method, compare, result)[RATE]
    tried = [{RATE: rate, **own} for own in method.settings][: compare.extra_trials]
    further = _further_rates(rate, sorted(compare.rates), compare.extra_trials - len(tried))
    return _trials(method, [*tried, *({RATE: each} for each in further)], compare)


def tuned(method: Resolved, compare: Compare, result: Callable[[Trial], Result]) -> Settings:
    """The settings of both waves with the best accuracy on the validation problems, the mean over tuning seeds.

    Raises `UserError` where every trial failed.
    """
    if not _is_choice(compare):
        return {RATE: compare.rates[0]}
    waves = [*first_wave(method, compare), *second_wave(method, compare, result)]
    return _best([trial.settings for trial in waves], method, compare, result)


def _is_choice(compare: Compare) -> bool:
    return len(compare.rates) > 1 or compare.extra_trials > 0


def accuracy(result: Result) -> float:
    """Of a tuning trial: sampled accuracy on the validation problems, greedy where nothing was sampled."""
    if "failed" in result:
        return -math.inf
    found = result["sets"]["validation"]
    if found["sampled"] is None:
        return sum(found["greedy"]) / len(found["greedy"])
    return sum(found["sampled"]["correct"]) / (found["sampled"]["of"] * len(found["prompts"]))


def _best(
    candidates: Sequence[Settings], method: Resolved, compare: Compare, result: Callable[[Trial], Result]
) -> Settings:
    def score(settings: Settings) -> float:
        found = [accuracy(result(trial)) for trial in _trials(method, [settings], compare)]
        return sum(found) / len(found)

    best = max(candidates, key=score)
    if score(best) == -math.inf:
        why = result(_trials(method, [best], compare)[0])["failed"]
        raise UserError(f"compare: every tuning trial of {method.name!r} failed; one of them: {why}")
    return best


def _trials(method: Resolved, settings: Sequence[Settings], compare: Compare) -> list[Trial]:
    return [Trial(method, one, seed, "tune") for one in settings for seed in compare.tuning_seeds]


def _further_rates(best: float, rates: Sequence[float], number: int) -> list[float]:
    """Rates that were not tried: beyond the edge where the best lies there, else halfway to its neighbours."""
    if len(rates) < 2:
        return []
    step = (rates[-1] / rates[0]) ** (1 / (len(rates) - 1))
    if best == rates[-1]:
        candidates = [best * step, best / math.sqrt(step), best * math.sqrt(step)]
    elif best == rates[0]:
        candidates = [best / step, best * math.sqrt(step), best / math.sqrt(step)]
    else:
        candidates = [best * math.sqrt(step), best / math.sqrt(step), best * step**0.25]
    return candidates[:number]
