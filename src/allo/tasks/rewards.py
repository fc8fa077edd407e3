"""Results of completions' rewards: pairs, the better half, and wins."""

from collections.abc import Iterable, Sequence
from statistics import median

from allo.errors import UserError
from allo.files.records import Pair, Prompt, Verdict
from allo.tasks.pairing import distinct, pair_of

REWARD_MODEL, RANKED_FUNCTION = "reward_model", "ranked_function"
"""The `verifier` of verdicts that say better or worse by rank, not right or wrong."""


def by_rank(verdicts: Sequence[Verdict]) -> bool:
    """Return whether verdicts rank the samples of a prompt."""
    return any(verdict.verifier in (REWARD_MODEL, RANKED_FUNCTION) for verdict in verdicts)


def ranked_pairs(
    prompts: Sequence[Prompt], verdicts: Iterable[Verdict], *, max_pairs_per_prompt: int, margin: float
) -> list[Pair]:
    """Pair a prompt's distinct samples by reward: the best with the worst, the second best with the second worst.

    A pair's rewards differ, by at least `margin`; no sample is in two pairs. A chosen completion is always finished.
    Of equal rewards, the one sampled first ranks higher. Raises `UserError` if no pair can be made.
    """
    assert max_pairs_per_prompt > 0 and margin >= 0
    samples: dict[str, list[Verdict]] = {prompt.id: [] for prompt in prompts}
    for verdict in distinct(verdicts):
        samples[verdict.prompt_id].append(verdict)
    pairs = [
        pair_of(prompt, chosen=best, rejected=worst)
        for prompt in prompts
        for best, worst in matched(samples[prompt.id], margin=margin)[:max_pairs_per_prompt]
    ]
    if not pairs:
        num = sum(map(len, samples.values()))
        raise UserError(
            f"no preference pair can be made: {len(prompts)} prompts with {num} distinct samples, and no prompt has two whose "
            f"rewards differ{f' by pair.margin {margin:g}' if margin else ''}, the better of which ended by itself. "
            f"{'Lower pair.margin, take' if margin else 'Take'} more samples a prompt or a higher temperature, or raise "
            "sample.max_new_tokens."
        )
    return pairs


def without_ranked_pair(prompts: Sequence[Prompt], pairs: Iterable[Pair], *, margin: float) -> str:
    """Return how many prompts have no pair by rewards, and why; empty if all have one."""
    missing = len(prompts) - len({pair.prompt_id for pair in pairs})
    if not missing:
        return ""
    apart = f"differ by pair.margin, {margin:g}" if margin else "differ"
    return (
        f"without a pair: {missing:,} of {len(prompts):,} prompts (no two samples whose rewards {apart}, the better of which "
        "ended by itself)"
    )


def matched(samples: Sequence[Verdict], *, margin: float) -> list[tuple[Verdict, Verdict]]:
    """Return (better, worse) from the extremes inwards, as long as the rewards differ enough."""
    ranked = sorted(samples, key=lambda one: (-one.reward, one.index))
    places = [place for place, one in enumerate(ranked) if one.finished]
    found = []
    for turn, place in enumerate(places):
        opposite = len(ranked) - 1 - turn
        if place >= opposite:
            break
        best, worst = ranked[place], ranked[opposite]
        difference = best.reward - worst.reward
        if difference <= 0 or difference < margin:
            break
        found.append((best, worst))
    return found


def above_median(rewards: Sequence[float]) -> list[bool]:
    """Return for each of a prompt's samples whether it is above the median; all are False if all are equal."""
    middle = median(rewards)
    return [reward > middle for reward in rewards]


def wins(rewards: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """Compare each reward with each of the baseline's: 1 if it is higher, 0.5 if equal, otherwise 0."""
    return [(1 + (reward > other) - (reward < other)) / 2 for reward in rewards for other in baseline]
