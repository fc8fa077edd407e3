"""Results of completions' rewards: pairs, the better half, and wins."""

from collections.abc import Iterable, Sequence
from statistics import median

from allo.errors import UserError
from allo.files.records import Pair, Prompt, Verdict
from allo.tasks.pairing import LONGER, MORE, NO_VERDICT, Reason, pair_of, samples_of

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
    samples = samples_of(prompts, verdicts)
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


def why_no_ranked_pair(samples: Sequence[Verdict], *, margin: float) -> Reason:
    """Return why a prompt's distinct samples make no pair by rewards."""
    rewards = [one.reward for one in samples]
    if not rewards:
        return NO_VERDICT
    if len(rewards) == 1:
        return "whose samples are all the same text", MORE
    apart = max(rewards) - min(rewards)
    if apart == 0:
        return "whose samples have the same reward", MORE
    if apart < margin:
        return "whose rewards differ by less than pair.margin", f"lower it from {margin:g}, or {MORE}"
    return "whose better samples were cut", LONGER


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
