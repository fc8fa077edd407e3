"""Bytes alive while code runs, counted on real tensors; and rehearsals, which count the same on none."""

import torch
from torch import nn

from allo.plan.live_bytes import LiveBytes
from allo.plan.rehearsal import Rehearsal

FP32 = 4


def test_a_storage_counts_once_and_until_its_last_view_is_gone() -> None:
    with LiveBytes() as live:
        whole = torch.zeros(100)
        part = whole[:10].view(2, 5)
        whole += 1
        assert (live.now, live.peak) == (100 * FP32, 100 * FP32)
        del whole
        assert live.now == 100 * FP32
        del part
    assert (live.now, live.peak) == (0, 100 * FP32)


def test_the_peak_is_that_of_what_lives_together_and_is_known_by_kind() -> None:
    with LiveBytes(lambda tensor: "long" if len(tensor) > 50 else "short") as live:
        kept = torch.zeros(10)
        for _ in range(3):
            torch.zeros(100)
        assert live.at_peak == {"short": 10 * FP32, "long": 100 * FP32}
        live.start_again()
        assert live.peak == 10 * FP32
        live.hold([kept], "kept")
        live.start_again()
        assert +live.at_peak == {"kept": 10 * FP32}


def test_tensors_of_before_count_where_they_are_held() -> None:
    before = torch.zeros(100)
    with LiveBytes() as live:
        live.hold([before], "before")
        before + 1
    assert live.peak == 200 * FP32


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8), nn.LayerNorm(8))


def peak_of_a_pass(live: LiveBytes) -> int:
    with live:
        model = layers()
        live.start_again()
        loss = model(torch.ones(5, 8)).square().mean()
        if loss.item() >= 0:
            loss.backward()
    return live.peak


def test_a_rehearsal_peaks_where_the_real_pass_does() -> None:
    assert peak_of_a_pass(Rehearsal()) == peak_of_a_pass(LiveBytes())


def test_a_rehearsal_takes_no_memory() -> None:
    size = 1 << 20  # 4 terabytes of weights
    with Rehearsal() as rehearsal:
        model = nn.Linear(size, size, bias=False)
        model(torch.ones(1, size)).sum().backward()
    assert rehearsal.peak >= 2 * size**2 * FP32  # the weight and its gradient


def test_ids_and_masks_are_real_in_a_rehearsal() -> None:
    with Rehearsal():
        ids = torch.arange(6).view(2, 3)
        mask = ids > 2
        hidden = nn.Embedding(6, 4)(ids)
        chosen = hidden[mask]
    assert ids.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert chosen.shape == (3, 4)


def test_where_numbers_decide_on_a_shape_it_is_the_largest() -> None:
    with Rehearsal():
        found = (torch.rand(3, 5) > 0.5).nonzero()
    assert found.shape == (15, 2)
