"""The micro-batches of an optimizer step: rows of similar length, within a budget of rows or tokens."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from allo.ranks import num_ranks, rank

Row = Mapping[str, Any]


def micro_batches(
    rows: Sequence[Row], num_tokens: Callable[[Row], int], *, max_rows: int, max_tokens: int | None
) -> list[list[Row]]:
    """Cut a step's rows into micro-batches, longest rows first, to save padding.

    A micro-batch has at most `max_rows` rows. With `max_tokens`, the limit is tokens instead, counted by `num_tokens`
    after padding to the longest row; a single row may exceed it.
    """
    rows = sorted(rows, key=num_tokens, reverse=True)
    batches = []
    while rows:
        size = max_rows if max_tokens is None else max(1, max_tokens // num_tokens(rows[0]))
        batches.append(rows[:size])
        rows = rows[size:]
    return batches


def own_share(batches: Sequence[Sequence[Row]], *, whole: bool = False) -> Iterator[Sequence[Row]]:
    """Yield this rank's micro-batches: dealt in turn, so that every rank gets long and short ones.

    If there are more ranks than micro-batches, the largest are cut in two, unless they must stay `whole`.
    """
    return iter(_cut(batches, whole=whole)[rank() :: num_ranks()])


def idle_share(batches: Sequence[Sequence[Row]], *, whole: bool = False) -> list[Sequence[Row]]:
    """Return the shortest micro-batch if other ranks have one more than this one, otherwise none.

    Ranks of a sharded model exchange its layers in each pass, so all must make as many passes.
    """
    cut = _cut(batches, whole=whole)
    return [cut[-1]] if -len(cut) % num_ranks() >= num_ranks() - rank() else []


def _cut(batches: Sequence[Sequence[Row]], *, whole: bool) -> list[Sequence[Row]]:
    cut = list(batches)
    while not whole and len(cut) < num_ranks() and max(map(len, cut), default=0) > 1:
        place = max(range(len(cut)), key=lambda number: len(cut[number]))
        middle = (len(cut[place]) + 1) // 2
        cut[place : place + 1] = [cut[place][:middle], cut[place][middle:]]
    return cut
