"""The micro-batches of an optimizer step: rows of similar length, within a budget of rows or tokens."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from allo.ranks import num_ranks, rank

Row = Mapping[str, Any]
Item = TypeVar("Item")


def micro_batches(
    rows: Sequence[Row],
    num_tokens: Callable[[Sequence[Row]], int],
    *,
    max_rows: int,
    max_tokens: int | None,
) -> list[list[Row]]:
    """Cut a step's rows into micro-batches, longest rows first, to save padding.

    A micro-batch has at most `max_rows` rows. With `max_tokens`, the limit is tokens instead, counted by `num_tokens`
    with padding; a single row may exceed it. Rows of one `group` stay together if they fit. Then `max_rows` stands for
    the tokens of so many rows as long as the longest.
    """
    whole = groups_of(rows)
    if max_tokens is None and len(whole) < len(rows):
        max_tokens = max_rows * max(num_tokens([row]) for row in rows)

    def fits(part: Sequence[Row]) -> bool:
        return len(part) <= max_rows if max_tokens is None else num_tokens(part) <= max_tokens

    batches: list[list[Row]] = []
    for group in sorted(whole, key=num_tokens, reverse=True):
        for part in [group] if fits(group) else [[row] for row in group]:
            if batches and fits(batches[-1] + part):
                batches[-1] += part
            else:
                batches.append(list(part))
    return batches


def groups_of(rows: Iterable[Row]) -> list[list[Row]]:
    """Return the rows of each `group`, in the order of first appearance; a row without one is its own."""
    groups: dict[Hashable, list[Row]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(("group", row["group"]) if "group" in row else place, []).append(row)
    return list(groups.values())


def own_share(batches: Sequence[Sequence[Row]], *, whole: bool = False) -> Iterator[Sequence[Row]]:
    """Yield this rank's micro-batches: dealt in turn, so that every rank gets long and short ones.

    If there are more ranks than micro-batches, the largest are cut in two, unless they must stay `whole`.
    """
    return iter((batches if whole else cut(batches, num_ranks()))[rank() :: num_ranks()])


def idle_share(batches: Sequence[Sequence[Row]], *, whole: bool = False) -> list[Sequence[Row]]:
    """Return the shortest micro-batch if other ranks have one more than this one, otherwise none.

    Ranks of a sharded model exchange its layers in each pass, so all must make as many passes.
    """
    parts = batches if whole else cut(batches, num_ranks())
    return [parts[-1]] if -len(parts) % num_ranks() >= num_ranks() - rank() else []


def cut(batches: Sequence[Sequence[Item]], number: int) -> list[Sequence[Item]]:
    """Return the micro-batches, the largest cut in two until there are `number`, down to one row each."""
    parts = list(batches)
    while len(parts) < number and max(map(len, parts), default=0) > 1:
        place = max(range(len(parts)), key=lambda each: len(parts[each]))
        middle = (len(parts[place]) + 1) // 2
        parts[place : place + 1] = [parts[place][:middle], parts[place][middle:]]
    return parts
