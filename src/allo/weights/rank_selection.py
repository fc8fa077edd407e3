"""Exact global top-k over the ranks of a sharded model: `selection.select`, by histograms that are summed over ranks.

Each of the (at most four) passes over the ranks' own scores sums 65,536 counts, half a megabyte. If keys are equal in all
of their bits, ranks also send where these are.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from allo.weights.selection import Cut, Pieces, divide, narrow
from allo.weights.shards import Ranks


def select_over_ranks(
    entries: Callable[[], Pieces], *, k: int, shapes: Mapping[str, tuple[int, ...]], ranks: Ranks
) -> dict[str, Tensor]:
    """Return those of this rank's entries that are among the k best of all ranks': sorted flat indices by tensor, int32.

    Each call of `entries` starts a new pass over this rank's (name, flat indices or the first of them, scores), ascending.
    Every rank gets every tensor with a selected entry, perhaps without any of its own. Ties are broken as by `select`.
    """
    cut = Cut(prefix=0, shift=64, quota=k, num_tied=0)
    while cut.shift == 64 or (cut.shift > 0 and cut.quota < cut.num_tied):
        cut = narrow(entries, cut, ranks)
    kept: dict[str, list[np.ndarray]] = {}
    tied: dict[str, list[np.ndarray]] = {}
    for piece in entries():
        name, below, between, _ = divide(*piece, cut.bounds)
        kept.setdefault(name, []).append(below)
        tied.setdefault(name, []).append(between)
    names = sorted(shapes)
    if cut.quota < cut.num_tied:
        for name, won in _first_tied(
            {name: np.concatenate(each) for name, each in tied.items()}, names, cut.quota, ranks
        ):
            kept[name].append(won)
    own = {name: np.sort(np.concatenate(each)) for name, each in kept.items()}
    counts = torch.tensor([len(own.get(name, ())) for name in names], device=ranks.device)
    chosen = [name for name, count in zip(names, ranks.sum(counts).tolist(), strict=True) if count]
    empty = np.empty(0, dtype=np.int32)
    return {name: torch.from_numpy(own.get(name, empty)) for name in chosen}


def _first_tied(
    tied: Mapping[str, np.ndarray], names: list[str], quota: int, ranks: Ranks
) -> list[tuple[str, np.ndarray]]:
    """Return those of this rank's entries with equal keys that are among the first `quota` by (name, flat index)."""
    places = [
        torch.stack([torch.full((len(tied[name]),), number), torch.from_numpy(tied[name]).long()], dim=1)
        for number, name in enumerate(names)
        if name in tied
    ]
    mine = torch.cat(places) if places else torch.empty(0, 2, dtype=torch.int64)
    sizes = ranks.every(torch.tensor(len(mine)))
    start = int(sizes[: ranks.place].sum())
    every = torch.zeros(int(sizes.sum()), 2, dtype=torch.int64, device=ranks.device)
    every[start : start + len(mine)] = mine.to(ranks.device)
    ordered = sorted(ranks.sum(every).tolist())
    last = ordered[quota - 1]
    return [
        (name, np.array([index for index in tied[name].tolist() if [number, index] <= last], dtype=np.int32))
        for number, name in enumerate(names)
        if name in tied
    ]
