"""Token credit: from a scorer's per-token scores to the weights that multiply the forgetting loss.

A score is the probability in [0, 1] that a token of a wrong completion is aligned: low marks a token
that is wrong (method.md 1.2). Scorers that measure a log-ratio are mapped there by `from_logratios`.
"""

import difflib
import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

RLMEC_CEILING = 0.1
UNSEEN = 0.5
"""How many samples the value before a token counts as, when the value after it is estimated."""


def from_logratios(logratios: Tensor, *, scale: float) -> Tensor:
    """sigmoid(logratio / scale): a log-ratio of 0 gives 0.5. `scale` makes it free of the learning rate.

    [...] fp32 -> [...] fp32. `scale` is the root mean square of the log-ratios of all completions.
    """
    return torch.sigmoid(logratios / scale)


def edit_scores(completion: Sequence[int], right: Sequence[Sequence[int]]) -> list[float]:
    """0 where the diff to the nearest right sample changes or drops the token, 1 elsewhere.

    The diff is difflib's: it keeps the longest common runs, which need not be the fewest edits.
    An insertion marks the token before which it comes, since that is where the completion went wrong.
    The nearest is the right sample with the highest share of matching ids by this diff, which need not be the one of
    the fewest edits (`edit_distance.nearest`): in the demo, 2 of 650 completions are scored differently. All ones if
    there is no right sample.
    """
    matchers = [difflib.SequenceMatcher(None, completion, other, autojunk=False) for other in right]
    if not matchers:
        return [1.0] * len(completion)
    nearest = max(matchers, key=lambda matcher: matcher.ratio())
    scores = [1.0] * len(completion)
    for tag, start, stop, _, _ in nearest.get_opcodes():
        if tag != "equal":
            for position in range(start, min(max(stop, start + 1), len(completion))):
                scores[position] = 0.0
    return scores


def advantages(completion: Sequence[int], samples: Sequence[tuple[Sequence[int], bool]]) -> list[float]:
    """The share of hope that each token keeps: min(1, V_t / V_(t-1)), 1 where there was none before it.

    V_t is the share of right ones among the prompt's samples (ids, right?) that begin as the completion does
    up to token t: a Monte Carlo value of the prefix (VinePPO, arXiv 2410.01679) from samples that are there
    anyway. By Bayes V_t / V_(t-1) = pi(y_t | right) / pi(y_t). After the token the samples are few, so V_t
    is drawn to V_(t-1) as by UNSEEN more of them. [L] in [0, 1].
    """
    scores, before = [], list(samples)
    for position, token in enumerate(completion):
        after = [one for one in before if len(one[0]) > position and one[0][position] == token]
        num_right = sum(right for _, right in before)
        kept = sum(right for _, right in after) * len(before) / num_right if num_right else len(after)
        scores.append(min(1.0, (kept + UNSEEN) / (len(after) + UNSEEN)))
        before = after
    return scores


def random_scores(key: str, length: int, *, seed: int) -> list[float]:
    """Uniform scores from a stable hash of (seed, key, position): the control."""
    digests = (hashlib.sha256(f"{seed}:{key}:{position}".encode()).digest() for position in range(length))
    return [int.from_bytes(digest[:8], "big") / 2**64 for digest in digests]


def first_marked(weights: Tensor) -> Tensor:
    """The weights of one completion with all but its first that is not 0 set to 0: [tokens] -> [tokens].

    Words that follow from a mistake are right, given the mistake: unlearning them unlearns how to reckon.
    """
    marked = weights != 0
    return weights * (marked & (marked.cumsum(-1) == 1))


def token_weights(scores: Tensor, *, rule: str, threshold: float = 0.5) -> Tensor:
    """w_t from scores p_t (method.md 1.2): [...] -> [...] fp32.

    `indicator`: 1[p < threshold], the paper's intent; `soft`: 1 - p; `rlmec`: clip(threshold - p, 0, 0.1)
    (arXiv 2401.06081); `as_released`: p, what the public script computes, opposite in direction.
    """
    match rule:
        case "indicator":
            return (scores < threshold).float()
        case "soft":
            return 1 - scores
        case "rlmec":
            return (threshold - scores).clamp(0, RLMEC_CEILING)
        case "as_released":
            return scores.clone()
    raise AssertionError(rule)


def completion_weights(
    scores: Tensor, lengths: Sequence[int], *, rule: str, threshold: float = 0.5, marked: str = "all"
) -> list[Tensor]:
    """Return `token_weights` completion by completion; with `marked="first"` only the first that is not 0 stays.

    `scores` [tokens] has the completions one after the other, `lengths` their tokens.
    """
    weights = token_weights(scores, rule=rule, threshold=threshold).split(list(lengths))
    return [first_marked(one) for one in weights] if marked == "first" else list(weights)
