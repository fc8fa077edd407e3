"""Token credit: a scorer's scores of tokens, and the weights that multiply the forgetting loss.

A score is the probability in [0, 1] that a token of a wrong completion is aligned, so a wrong token has a low one
(method.md 1.2). `from_logratios` maps log-ratios to such scores.
"""

import difflib
import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

RLMEC_CEILING = 0.1
UNSEEN = 0.5
"""The number of samples that the value before a token counts as, when the value after it is estimated."""


def from_logratios(logratios: Tensor, *, scale: float) -> Tensor:
    """Return sigmoid(logratio / scale), which is 0.5 for a log-ratio of 0: [...] fp32 -> [...] fp32.

    `scale` is the root mean square of all completions' log-ratios. It makes scores independent of the learning rate.
    """
    return torch.sigmoid(logratios / scale)


def edit_scores(completion: Sequence[int], right: Sequence[Sequence[int]]) -> list[float]:
    """Return 0 for each token that the diff to the nearest right sample changes or drops, and 1 for all others.

    The diff is difflib's: it keeps the longest common runs, which need not give the fewest edits. An insertion marks the
    token that follows it, because the completion went wrong there. The nearest right sample is the one with the highest
    share of matching ids by this diff. It may differ from the one with the fewest edits (`edit_distance.nearest`): in the
    demo, 2 of 650 completions are scored differently. Without a right sample all scores are 1.
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
    """Return the share of the prefix's value that remains after each token, [L] in [0, 1]: min(1, V_t / V_(t-1)).

    V_t is the share of right samples among those of the prompt (ids, right?) that begin like the completion up to token t.
    It is a Monte Carlo value of the prefix (VinePPO, arXiv 2410.01679), from samples that exist anyway. By Bayes
    V_t / V_(t-1) = pi(y_t | right) / pi(y_t). Few samples share the longer prefix, so UNSEEN samples of value V_(t-1) are
    added to them. If V_(t-1) is 0, the score is 1.
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
    """Return uniform scores, a control, from a stable hash of (seed, key, position)."""
    digests = (hashlib.sha256(f"{seed}:{key}:{position}".encode()).digest() for position in range(length))
    return [int.from_bytes(digest[:8], "big") / 2**64 for digest in digests]


def first_marked(weights: Tensor) -> Tensor:
    """Return the weights of one completion with all set to 0 after the first that is not 0: [tokens] -> [tokens].

    Tokens that follow from a mistake are correct given it; unlearning them damages arithmetic.
    """
    marked = weights != 0
    return weights * (marked & (marked.cumsum(-1) == 1))


def token_weights(scores: Tensor, *, rule: str, threshold: float = 0.5) -> Tensor:
    """Return w_t from scores p_t (method.md 1.2): [...] -> [...] fp32.

    `indicator` is 1[p < threshold], as the paper intends. `soft` is 1 - p, and `rlmec` is clip(threshold - p, 0, 0.1)
    (arXiv 2401.06081). `as_released` is p, as the public script computes it, in the opposite direction.
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
