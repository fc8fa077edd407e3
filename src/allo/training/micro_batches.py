"""The micro-batches of an optimizer step: rows of like length together, within a budget of rows or tokens."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from allo.weights.ranks import num_ranks, rank

Row = Mapping[str, Any]


def micro_batches(
    rows: Sequence[Row], num_tokens: Callable[[Row], int], *, max_rows: int, max_tokens: int | None
) -> list[list[Row]]:
    """Cut a step's rows, longest first, so that little is padded.

    A micro-batch has at most `max_rows` rows; with `max_tokens` instead as many as, padded to the longest of
    them, have at most so many tokens by `num_tokens`, and at least one.
    """
    rows = sorted(rows, key=num_tokens, reverse=True)
    batches = []
    while rows:
        size = max_rows if max_tokens is None else max(1, max_tokens // num_tokens(rows[0]))
        batches.append(rows[:size])
        rows = rows[size:]
    return batches


def own_share(batches: Sequence[Sequence[Row]]) -> Iterator[Sequence[Row]]:
    """Those that this rank computes: dealt in turn, so that every rank has long and short ones."""
    return iter(batches[rank() :: num_ranks()])
