"""A training checkpoint that another number of shards wrote: each rank takes its own entries from all of its files.

A rank's rows of a tensor are one interval of it. A tensor's selected entries on all ranks, in order, are those of the whole
model, whatever the number of ranks.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from allo.errors import UserError
from allo.weights.selected import SelectedWeights

State = dict[str, Tensor]
"""As `SelectedWeights.state_dict()` returns it."""


def resharded(
    parts: Iterable[tuple[State, dict[str, Any]]], selected: SelectedWeights, where: str
) -> tuple[State, dict[str, Any]]:
    """Return this rank's state of the selected weights and of the optimizer, from those of the parts that were written, in order.

    All ranks call it together. Memory holds one part at a time. Raises `UserError`, naming the checkpoint `where`, for an
    optimizer's state that has not one number for each entry, such as 8-bit moments in blocks.
    """
    ranges = selected.ranges()
    lengths = [length for _, length in ranges.values()]
    before = selected.ranks.every(torch.tensor(lengths))[: selected.ranks.place].sum(0).tolist()
    columns = ["master", *(f"slot.{slot}" for slot in selected.slots)]
    own: dict[str, dict[str, list[Tensor]]] = {name: defaultdict(list) for name in ranges}
    optimizer: dict[str, Any] = {}
    for state, tree in parts:
        found = _moments(tree, state, ranges, where)
        for place, name in enumerate(ranges):
            found[name] |= {column: state[f"{name}.{column}"] for column in columns}
            num = len(state[f"{name}.master"])
            first, last = (min(max(edge, 0), num) for edge in (before[place], before[place] + lengths[place]))
            for column, values in found[name].items():
                own[name][column].append(values[first:last].clone())
            before[place] -= num
        if len(tree["state"]) >= len(optimizer.get("state", ())):  # a part without rows may have none
            optimizer = tree
    for flat, entries in optimizer["state"].items():
        mine = [own[name] for name, (number, _) in ranges.items() if number == flat]
        for key in _vectors(entries):
            entries[key] = torch.cat([values for each in mine for values in each[key]])
    return {f"{name}.{column}": torch.cat(own[name][column]) for name in own for column in columns}, optimizer


def _moments(
    tree: dict[str, Any], state: State, ranges: dict[str, tuple[int, int]], where: str
) -> dict[str, State]:
    """Return, by tensor, an optimizer's numbers of a part's entries."""
    totals: Counter[int] = Counter()
    found: dict[str, State] = {}
    for name, (flat, _) in ranges.items():
        first = totals[flat]
        totals[flat] += len(state[f"{name}.master"])
        vectors = _vectors(tree["state"].get(flat, {}))
        found[name] = {key: value[first : totals[flat]] for key, value in vectors.items()}
    for flat, total in totals.items():
        for key, value in _vectors(tree["state"].get(flat, {})).items():
            if value.shape != (total,):
                raise UserError(
                    f"{where}: another number of shards wrote it, and the optimizer's {key} has {list(value.shape)} numbers for "
                    f"{total} weights, which cannot be divided anew. Go on with as many shards as before, or remove the "
                    "folder's checkpoints to begin again."
                )
    return found


def _vectors(entries: dict[str, Any]) -> State:
    return {key: value for key, value in entries.items() if isinstance(value, Tensor) and value.dim()}
