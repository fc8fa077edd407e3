"""Where the k-th of all scores probably lies: two keys from a sample, wide enough to be right nearly always.

`selection` orders entries by key = rank of the score << 32 | a hash that is uniform. A sample of
ranks therefore tells any key of a given place: the rank from the sample, the hash from the share
of that rank's entries. Nothing rests on the guess being right: `selection` finds out if it is not.
"""

import math
from collections.abc import Iterable

import numpy as np
from torch import Tensor

# Ranks kept, 4 bytes each; a larger sample leaves fewer entries between the two keys.
SAMPLE = 1 << 22
# Half the distance of the two keys, in standard deviations; beyond 3 lies one guess in 370.
WIDTH = 3.0
# Places added on either side, for few entries.
SLACK = 32

# fp32 bits without the sign, of which a rank counts down.
LARGEST_BITS = 0x7FFFFFFF
LAST_KEY = 1 << 63

# Neighbours are alike (rows, tensors): the sample's spread is that of groups of so many.
_GROUP = 512


def ranks_of(scores: np.ndarray) -> np.ndarray:
    """Non-negative fp32 scores as int32 of the same shape: the larger the score, the smaller the rank."""
    # The mask: the bits of -0.0 are not those of 0.0.
    return LARGEST_BITS - (scores.view(np.int32) & LARGEST_BITS)


def guess(scores: Iterable[Tensor], *, k: int, num_entries: int = 0) -> tuple[int, int]:
    """Two keys between which the k-th smallest of `num_entries` keys probably lies.

    `scores` is any fair sample of all scores, fp32 tensors in their order; `num_entries` says how
    many there are in all, where the sample is not all of them.
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
    """Between SAMPLE and 2 SAMPLE ranks at even distances, or all where there are fewer; how many were seen."""
    ranks, kept = np.empty(2 * SAMPLE, dtype=np.int32), 0
    stride, ahead, num_seen = 1, 0, 0  # `ahead`: entries to the next one that is kept
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
    """Standard deviation of the number of the sample's ranks below the true threshold.

    From the differences of neighbouring groups, as for systematic samples: what changes slowly
    over the model adds nothing to it, what neighbours have in common does.
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
    """The key that about `place` of the sample's keys lie below; `ranks` is sorted."""
    rank = ranks[int(place)]
    first, last = np.searchsorted(ranks, rank, "left"), np.searchsorted(ranks, rank, "right")
    return int(rank) << 32 | int((place - int(first)) / int(last - first) * (1 << 32))
