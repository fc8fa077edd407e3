"""A sample's guess: the k-th key lies between its two keys, whatever the scores look like."""

import numpy as np
import pytest
import torch
from torch import Tensor

from allo.weights import key_sample
from allo.weights.key_sample import LAST_KEY, guess, ranks_of
from allo.weights.selection import stable_hash

NUM = 60_000


def keys_of(scores: Tensor) -> np.ndarray:
    """Sorted keys of one tensor's entries, from the rank's and the hash's definitions."""
    ranks = ranks_of(scores.numpy()).astype(np.uint64)
    return np.sort(
        ranks << np.uint64(32) | stable_hash("w", torch.arange(len(scores))).numpy().astype(np.uint64)
    )


def scores_like(kind: str) -> Tensor:
    scores = torch.randn(NUM, generator=torch.Generator().manual_seed(7)).abs()
    return {
        "fine": scores,
        "coarse": (scores * 3).floor(),
        "equal": torch.ones(NUM),
        "mostly zero": scores * (scores > 2),
    }[kind]


@pytest.mark.parametrize("kind", ["fine", "coarse", "equal", "mostly zero"])
def test_the_kth_key_lies_between_the_two(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_sample, "SAMPLE", 1000)
    scores = scores_like(kind)
    keys = keys_of(scores)
    for k in (1, 2, 600, 3000, NUM // 2, NUM - 1, NUM):
        low, high = guess([scores], k=k)
        assert low <= int(keys[k - 1]) < high <= LAST_KEY, f"k = {k}"


def test_the_guess_is_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 15,000 of 60,000 ranks at most a twentieth of the entries lie between the keys of the 5%."""
    monkeypatch.setattr(key_sample, "SAMPLE", 10_000)
    for kind in ("fine", "coarse", "equal", "mostly zero"):
        scores = scores_like(kind)
        keys = keys_of(scores)
        low, high = guess([scores], k=NUM // 20)
        assert np.searchsorted(keys, np.uint64(high)) - np.searchsorted(keys, np.uint64(low)) < NUM / 20, kind


def test_a_large_score_has_a_small_rank() -> None:
    scores = np.array([0.0, -0.0, 1e-45, 1.0, np.inf], dtype=np.float32)
    ranks = ranks_of(scores)
    assert ranks[0] == ranks[1] == key_sample.LARGEST_BITS
    assert (np.diff(ranks[1:]) < 0).all()


@pytest.mark.parametrize("cuts", [[NUM], [1, 7, NUM - 8], [NUM // 2, NUM // 2], [100] * (NUM // 100)])
def test_thinning_keeps_even_distances_however_the_sample_comes(
    cuts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_sample, "SAMPLE", 1000)
    scores = torch.arange(NUM).float()
    ranks, num_seen = key_sample._thinned(scores.split(cuts))
    kept = (key_sample.LARGEST_BITS - ranks).view(np.float32)
    assert num_seen == NUM and 900 <= len(kept) <= 2000
    assert np.diff(kept).max() <= 2 * np.median(np.diff(kept))
