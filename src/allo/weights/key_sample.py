"""Two keys, guessed from a sample of scores, between which the k-th key nearly always lies.

`selection` orders entries by key = rank of the score << 32 | a uniform hash. A sample of ranks therefore gives the
key at any position: its rank from the sample, its hash from the share of that rank's entries. `selection` detects a
wrong guess, which costs it time but leaves its result exact.
"""

import math
from collections.abc import Iterable

import numpy as np
from torch import Tensor

# Ranks kept, 4 bytes each; a larger sample leaves fewer entries between the two keys.
SAMPLE = 1 << 22
# Half the distance between the two keys, in standard deviations; one guess in 370 lies beyond 3.
WIDTH = 3.0
# Positions added on either side, for small numbers of entries.
SLACK = 32

# The bits of fp32 without the sign; ranks count down from here.
LARGEST_BITS = 0x7FFFFFFF
LAST_KEY = 1 << 63

# Neighbours (rows, tensors) are alike, so the sample's spread is computed over groups of this size.
_GROUP = 512


def ranks_of(scores: np.ndarray) -> np.ndarray:
    """Convert non-negative fp32 scores to int32 ranks of the same shape: larger scores get smaller ranks."""
    # The mask gives -0.0 the bits of 0.0.
    return LARGEST_BITS - (scores.view(np.int32) & LARGEST_BITS)


def guess(scores: Iterable[Tensor], *, k: int, num_entries: int = 0) -> tuple[int, int]:
    """Return two keys between which the k-th smallest of `num_entries` keys probably lies.

    `scores` is any fair sample of all scores, as fp32 tensors in order. `num_entries` is the number of all entries,
    needed if the sample is smaller.
    """
    ranks, num_seen = _thinned(scores)
    if not len(ranks):
        return 0, LAST_KEY
    share = min(k / max(num_entries, num_seen), 1.0)
    place = share * len(ranks)
    margin = WIDTH * _deviation(ranks, share) + SLACK
    ranks.sort()
    low = _key_at(ranks, place - margin) if place > margin else 0
    high = _key_at(ranks, place + margin) if place + margin < len(ranks) else LAST_KEY
    return low, high


def _thinned(scores: Iterable[Tensor]) -> tuple[np.ndarray, int]:
    """Return SAMPLE to 2 SAMPLE evenly spaced ranks, or all if there are fewer, and the number seen."""
    ranks, kept = np.empty(2 * SAMPLE, dtype=np.int32), 0
    stride, ahead, num_seen = 1, 0, 0  # `ahead`: entries until the next kept one
    for tensor in scores:
        for piece in tensor.detach().reshape(-1).split(SAMPLE):
            chosen = ranks_of(piece[ahead::stride].cpu().numpy())
            ahead = (ahead - len(piece)) % stride
            num_seen += len(piece)
            if kept + len(chosen) > len(ranks):
                kept = -(-kept // 2)
                ranks[:kept] = ranks[: 2 * kept : 2].copy()
                stride, chosen = 2 * stride, chosen[::2]
            ranks[kept : kept + len(chosen)] = chosen
            kept += len(chosen)
    return ranks[:kept], num_seen


def _deviation(ranks: np.ndarray, share: float) -> float:
    """Return the standard deviation of the number of sampled ranks below the true threshold.

    Uses differences of neighbouring groups, as for systematic samples. Slow changes over the model add nothing;
    similarity among neighbours does.
    """
    some = np.sort(ranks[::16])
    threshold = some[min(int(share * len(some)), len(some) - 1)]
    first, last = np.searchsorted(some, threshold, "left"), np.searchsorted(some, threshold, "right")
    of_the_ties = (share * len(some) - first) / (last - first)
    whole = ranks[: len(ranks) // _GROUP * _GROUP].reshape(-1, _GROUP)
    if len(whole) < 2:
        return math.sqrt(len(ranks) * share * (1 - share))
    counts = (whole < threshold).sum(axis=1) + of_the_ties * (whole == threshold).sum(axis=1)
    return math.sqrt(float(np.square(np.diff(counts)).mean()) / 2 * len(whole))


def _key_at(ranks: np.ndarray, place: float) -> int:
    """Return the key that exceeds about `place` of the sample's keys; `ranks` is sorted."""
    rank = ranks[int(place)]
    first, last = np.searchsorted(ranks, rank, "left"), np.searchsorted(ranks, rank, "right")
    return int(rank) << 32 | int((place - int(first)) / int(last - first) * (1 << 32))
