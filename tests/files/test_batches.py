"""Batches that are dealt to ranks: whoever computes them, and whatever is killed, the rows are the same."""

import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from allo.errors import UserError
from allo.files import batches
from allo.files.batches import Batches, Parts, in_files, in_turn

TOTAL = 11
WHOLE = [[{"a": number, "half": number / 3}] * (number % 3) for number in range(TOTAL)]


def made(numbers: Iterator[int]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    for number in numbers:
        yield number, WHOLE[number]


class Ranks:
    """Ranks that work one after the other; each takes a random share, and all but the last may be killed in it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
        self.random = random.Random(seed)
        self.rank, self.size = 0, 1
        self.untaken: list[int] = []
        monkeypatch.setattr(batches, "rank", lambda: self.rank)
        monkeypatch.setattr(batches, "num_ranks", lambda: self.size)
        monkeypatch.setattr(batches, "dealt", self.dealt)

    def dealt(self, total: int) -> Iterator[int]:
        del total
        share = len(self.untaken) if self.rank == self.size - 1 else self.random.randint(0, len(self.untaken))
        while self.untaken and share:
            share -= 1
            yield self.untaken.pop(0)

    def fill(self, path: Path, *, size: int, dies_after: int | None = None) -> Batches:
        self.size = size
        shared = [Batches(path, TOTAL) for _ in range(size)]
        self.untaken = list(range(len(shared[0].left)))
        if dies_after is not None:
            self.untaken = self.untaken[:dies_after]
        for self.rank, own in enumerate(shared):
            own.fill(made, "test")
        self.rank = 0
        return shared[0]


@pytest.mark.invariant(
    "A stage's batches are the same, whichever ranks computed them, before and after a kill."
)
@pytest.mark.parametrize("seed", range(20))
def test_any_number_of_ranks_continues_what_any_number_began(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks, path = Ranks(monkeypatch, seed), tmp_path / "a.jsonl"
    for _ in range(3):
        ranks.fill(path, size=ranks.random.randint(1, 4), dies_after=ranks.random.randint(0, 3))
        parts = sorted(tmp_path.iterdir())
        if parts and ranks.random.random() < 0.5:  # a kill tore the last line
            part = ranks.random.choice(parts)
            part.write_bytes(part.read_bytes()[:-5])
    done = ranks.fill(path, size=ranks.random.randint(1, 4))
    assert done.rows() == WHOLE
    assert Batches(path, TOTAL).left == []
    done.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_finished_batch_is_not_computed_again(tmp_path: Path) -> None:
    first = Batches(tmp_path / "a.jsonl", TOTAL)
    with pytest.raises(KeyboardInterrupt):
        first.fill(interrupted, "test")
    again = Batches(tmp_path / "a.jsonl", TOTAL)
    assert again.left == list(range(3, TOTAL))


def interrupted(numbers: Iterator[int]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    for number, rows in made(numbers):
        if number == 3:
            raise KeyboardInterrupt
        yield number, rows


@pytest.mark.parametrize("foreign", [b"\0" * 30, b"[]", b'[{"a": 1}]', b"null", b'{"number": 1}', b""])
def test_a_damaged_or_foreign_line_is_computed_again_and_no_other(foreign: bytes, tmp_path: Path) -> None:
    Batches(tmp_path / "a.jsonl", TOTAL).fill(made, "test")
    (part,) = tmp_path.iterdir()
    lines = part.read_bytes().splitlines(keepends=True)
    lines[4] = foreign + b"\n"
    part.write_bytes(b"".join(lines))
    again = Batches(tmp_path / "a.jsonl", TOTAL)
    assert again.left == [4]
    again.fill(made, "test")
    assert again.rows() == WHOLE


def test_files_of_neighbouring_computations_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names of sets may begin alike, and hold what a pattern would match."""
    names = (
        "08-eval.json.start.a",
        "08-eval.json.start.a.b",
        "08-eval.json.start.[a]",
        "08-eval.json.start.?",
    )
    ranks = Ranks(monkeypatch, 0)
    for name in names:
        ranks.fill(tmp_path / name, size=3)
    for name, _ in pairwise(names):
        Batches(tmp_path / name, TOTAL).discard()
    assert Batches(tmp_path / names[-1], TOTAL).rows() == WHOLE
    assert {part.name.startswith(names[-1]) for part in tmp_path.iterdir()} == {True}


def test_a_rank_that_does_not_see_the_others_files_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_PATIENCE", -1)
    ranks = Ranks(monkeypatch, 1)
    done = ranks.fill(tmp_path / "a.jsonl", size=2)
    done.discard()
    with pytest.raises(
        UserError, match=r"rank 0 cannot see batch 0 of 11: all processes need .* shared file system"
    ):
        done.rows()


def test_work_in_files_equals_work_in_turn(tmp_path: Path) -> None:
    """Numbers with many digits survive the files bit for bit."""
    parts: Parts = []

    def compute(number: int) -> list[dict[str, Any]]:
        return [{"value": (number + 0.1) ** 0.5, "small": 1e-310, "kept": None}]

    deal = in_files(tmp_path / "08-eval.json.start", parts)
    assert deal("KL to the start", 5, compute) == in_turn("KL to the start", 5, compute)
    assert deal("likelihood", 2, lambda number: [{"other": number}]) == [[{"other": 0}], [{"other": 1}]]
    assert len(parts) == 2
