"""A step's micro-batches, dealt to ranks: each row once, and work for every rank that can have some."""

import pytest

from allo.training import micro_batches
from allo.training.micro_batches import own_share


def shares(
    sizes: list[int], num_ranks: int, monkeypatch: pytest.MonkeyPatch, *, whole: bool = False
) -> list[list[list[int]]]:
    numbers = iter(range(sum(sizes)))
    batches = [[{"number": next(numbers)} for _ in range(size)] for size in sizes]
    monkeypatch.setattr(micro_batches, "num_ranks", lambda: num_ranks)
    found = []
    for rank in range(num_ranks):
        monkeypatch.setattr(micro_batches, "rank", lambda rank=rank: rank)
        found.append([[row["number"] for row in part] for part in own_share(batches, whole=whole)])
    return found


@pytest.mark.parametrize("sizes", [[8], [3], [1], [4, 4, 1], [5, 2], [1, 1, 1], []])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
def test_every_row_is_dealt_once_and_no_rank_idles_that_could_work(
    sizes: list[int], num_ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = shares(sizes, num_ranks, monkeypatch)
    rows = sorted(number for own in found for part in own for number in part)
    assert rows == list(range(sum(sizes)))
    assert sum(bool(own) for own in found) == min(num_ranks, sum(sizes))
    assert all(part for own in found for part in own)


def test_micro_batches_stay_as_they_are_where_there_are_enough_or_they_must(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert shares([4, 2, 3], 2, monkeypatch) == [[[0, 1, 2, 3], [6, 7, 8]], [[4, 5]]]
    assert shares([4], 3, monkeypatch, whole=True) == [[[0, 1, 2, 3]], [], []]
