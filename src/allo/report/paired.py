"""Differences between two models on the same prompts, with intervals over the prompts."""

from collections.abc import Sequence

from allo.files.evaluation import Answer, Evaluated, Measured

Prompts = dict[str, list[float]]
"""The values of each prompt's answers: rewards, or 1 for a right answer."""


def values(rows: Sequence[Evaluated], kind: str) -> Prompts:
    """Return the values of sampled or greedy answers; nothing of a prompt without a verdict."""
    found: Prompts = {}
    for row in rows:
        answers: list[Answer] = row.sampled if kind == "sampled" else [row.greedy] if row.greedy else []
        own = [each.correct if each.reward is None else each.reward for each in answers]
        if own and None not in own:
            found[row.prompt_id] = [float(value) for value in own if value is not None]
    return found


def difference(mine: Prompts, other: Prompts) -> Measured | None:
    """Return the mean difference over prompts with its interval; None unless both have the same prompts."""
    if not mine or mine.keys() != other.keys():
        return None
    # Imported here, as only reports with answers need numpy.
    from allo.stats.metrics import bootstrap

    apart = [[sum(own) / len(own) - sum(other[key]) / len(other[key])] for key, own in mine.items()]
    found = bootstrap(apart, seed=0)
    return Measured(found.value, found.low, found.high, found.num)
