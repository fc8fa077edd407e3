"""Part files of many ranks: what 64 of them compute is merged to the rows of one, also if others began or continue it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from allo.files import batches
from allo.files.batches import Batches

TOTAL = 300
WHOLE = [[{"a": number, "third": number / 3}] * (number % 3) for number in range(TOTAL)]


class Simulated:
    """Ranks that work one after the other, each on the share that it would be dealt."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rank, self.size, self.computed = 0, 1, 0
        monkeypatch.setattr(batches, "rank", lambda: self.rank)
        monkeypatch.setattr(batches, "num_ranks", lambda: self.size)
        monkeypatch.setattr(batches, "from_first", lambda decide: decide())
        monkeypatch.setattr(batches, "barrier", lambda: None)
        monkeypatch.setattr(batches, "dealt", lambda total: iter(range(self.rank, total, self.size)))

    def fill(self, path: Path, *, size: int, killed_after: int = TOTAL) -> Batches:
        """Let `size` ranks do their shares; each computes at most `killed_after` batches."""

        def made(numbers: Iterator[int]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
            for done, number in enumerate(numbers):
                if done == killed_after:
                    return
                self.computed += 1
                yield number, WHOLE[number]

        self.size = size
        shared = Batches(path, TOTAL)  # all ranks see the same files before any of them works
        for self.rank in range(size):
            shared.fill(made, "test")
        self.rank = 0
        return shared


def test_the_part_files_of_64_ranks_are_merged_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated = Simulated(monkeypatch)
    done = simulated.fill(tmp_path / "a.jsonl", size=64)
    assert len(list(tmp_path.iterdir())) == 64
    assert done.rows() == WHOLE
    assert simulated.computed == TOTAL
    done.discard()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sizes", [(64, 1), (64, 5), (3, 64), (1, 64)])
def test_another_number_of_ranks_continues_what_64_began(
    sizes: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = sizes
    simulated = Simulated(monkeypatch)
    simulated.fill(tmp_path / "a.jsonl", size=first, killed_after=TOTAL // first // 2)
    begun = simulated.computed
    assert 0 < begun < TOTAL
    done = simulated.fill(tmp_path / "a.jsonl", size=second)
    assert done.rows() == WHOLE
    assert simulated.computed == TOTAL, "nothing is computed twice"
