"""Exact selection of whole groups of weights by their norm: rows, columns or blocks of every matrix.

The norm of a group is the root mean square of its entries' scores. A mean, unlike a sum, lets groups of different
sizes compete: a long row with a short one, a block with a smaller one at the edge. In a one-dimensional tensor (a
norm, a bias) each entry is a group. A tensor of three or more dimensions is treated as a matrix of its first
dimension by all others.

Memory: 12 bytes per group while scores arrive and about 60 while groups are sorted. Then one byte per weight of the
largest tensor, in addition to the result.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from allo.errors import UserError
from allo.recipe.granularity import WEIGHT, Granularity
from allo.weights.rank_selection import select_over_ranks
from allo.weights.selection import Entries, Scores, select, select_among, stable_hash, with_starts
from allo.weights.shards import ONE, Ranks


@dataclass(frozen=True)
class Tiles:
    """A tensor as a matrix cut into tiles; each tile is a group, numbered row by row of tiles."""

    height: int
    width: int
    tile_height: int
    tile_width: int

    @classmethod
    def of(cls, shape: tuple[int, ...], granularity: Granularity) -> "Tiles":
        if len(shape) < 2 or 0 in shape:
            return cls(math.prod(shape), 1, 1, 1)
        height, width = shape[0], math.prod(shape[1:])
        return cls(height, width, *granularity.tile(height, width))

    @property
    def grid(self) -> tuple[int, int]:
        """Return the number of tiles down and across."""
        return math.ceil(self.height / self.tile_height), math.ceil(self.width / self.tile_width)

    def groups_of(self, indices: Tensor) -> Tensor:
        """Map flat indices [n] of entries to their groups, int32 [n]."""
        rows, columns = indices // self.width, indices % self.width
        return rows // self.tile_height * self.grid[1] + columns // self.tile_width

    def first_entries(self, groups: Tensor) -> Tensor:
        """Return the flat index of each group's first entry: int64 [n] -> int64 [n]."""
        down, across = groups // self.grid[1], groups % self.grid[1]
        return down * self.tile_height * self.width + across * self.tile_width

    def entries(self, groups: Tensor) -> Tensor:
        """Return all entries of the given groups, int64 [n], as sorted flat indices, int32."""
        chosen = torch.zeros(math.prod(self.grid), dtype=torch.bool)
        chosen[groups] = True
        wide = chosen.view(self.grid).repeat_interleave(self.tile_width, dim=1)[:, : self.width]
        # If each tile is one row high, nothing needs repeating.
        tall = wide if self.tile_height == 1 else wide.repeat_interleave(self.tile_height, dim=0)
        return tall[: self.height].reshape(-1).nonzero().squeeze(1).int()


def select_groups(
    tensors: Scores,
    *,
    k: int,
    shapes: Mapping[str, tuple[int, ...]],
    granularity: str,
    ranks: Ranks = ONE,
) -> dict[str, Tensor]:
    """Select whole groups in order of their norm, with at most k weights in total.

    `tensors` as in `selection.select`; with granularity "weight" this is `select`. Selection stops at the first group
    that does not fit, so the result falls short of k by less than one group. Ties go to the smallest `stable_hash` of
    the first entry, then to the first (name, group). The order of tensors does not matter. A smaller selection is a
    subset of a larger one.

    With `ranks`, each gives its own entries and gets the chosen ones of them; only single weights are selected.

    Returns name -> sorted flat indices (int32, CPU); tensors with none selected are absent. Raises UserError for a
    NaN score, and if the first group alone has more than k weights.
    """
    if ranks.num > 1 and granularity == WEIGHT:
        return select_over_ranks(lambda: with_starts(tensors()), k=k, shapes=shapes, ranks=ranks)
    if granularity == WEIGHT:
        return select(tensors, k=k)
    if ranks.num > 1:
        raise UserError(
            f"granularity {granularity}: a sharded model's weights are selected one by one; remove locate.granularity, or shards."
        )
    pieces = (
        (
            name,
            where
            if isinstance(where, Tensor)
            else torch.arange(where, where + len(piece), dtype=torch.int32),
            piece,
        )
        for name, where, piece in with_starts(tensors())
    )
    return _select(pieces, k=k, shapes=shapes, granularity=granularity)


def select_groups_among(
    entries: Callable[[], Entries], *, k: int, shapes: Mapping[str, tuple[int, ...]], granularity: str
) -> dict[str, Tensor]:
    """Select like `select_groups` from a sparse stream of (name, flat indices int32 ascending, scores fp32).

    A group appears whole or not at all.
    """
    if granularity == WEIGHT:
        return select_among(entries, k=k)
    return _select(entries(), k=k, shapes=shapes, granularity=granularity)


def _select(
    entries: Entries, *, k: int, shapes: Mapping[str, tuple[int, ...]], granularity: str
) -> dict[str, Tensor]:
    parsed = Granularity.parse(granularity)
    tiles = {name: Tiles.of(shapes[name], parsed) for name in sorted(shapes)}
    bounds = list(itertools.accumulate((math.prod(part.grid) for part in tiles.values()), initial=0))
    squares, sizes = _summed(entries, tiles, dict(zip(tiles, bounds, strict=False)), num_groups=bounds[-1])
    hashes = [
        stable_hash(name, part.first_entries(torch.arange(math.prod(part.grid))))
        for name, part in tiles.items()
    ]
    norms = (squares / sizes).sqrt().float()
    chosen = _first_to_fit(norms, sizes, torch.cat(hashes), k=k)
    result = {}
    for (name, part), start, end in zip(tiles.items(), bounds, bounds[1:], strict=False):
        first, last = torch.searchsorted(chosen, torch.tensor([start, end])).tolist()
        if last > first:
            result[name] = part.entries(chosen[first:last] - start)
    return result


def _summed(
    entries: Entries, tiles: Mapping[str, Tiles], starts: Mapping[str, int], *, num_groups: int
) -> tuple[Tensor, Tensor]:
    """Return, for all groups [groups], the sum of squared scores fp64 and the number of entries int32.

    Both are allocated beforehand. Small tensors kept between large freed pieces would pin the heap, and resident
    memory would grow with the model.
    """
    squares = torch.zeros(num_groups, dtype=torch.float64)
    sizes = torch.zeros(num_groups, dtype=torch.int32)
    for name, indices, scores in entries:
        if bool(scores.isnan().any()):
            bad = int(indices[scores.isnan().to(indices.device)][0])
            raise UserError(
                f"tensor {name}, flat index {bad}: the importance score is NaN, so groups cannot be ranked;"
                " look for NaN or infinite values in the model's weights or gradients"
            )
        groups = tiles[name].groups_of(indices.cpu()).long() + starts[name]
        # Added in order of the flat index, so that pieces of any length give the same bits.
        squares.index_add_(0, groups, scores.detach().cpu().double().square())
        sizes.index_add_(0, groups, torch.ones_like(groups, dtype=torch.int32))
    return squares, sizes


def _first_to_fit(norms: Tensor, sizes: Tensor, hashes: Tensor, *, k: int) -> Tensor:
    """Return the numbers, sorted int64, of the first groups by norm that have at most k weights in total.

    Groups are numbered in order of (name, group); groups of size 0 are skipped. All arguments [groups].
    """
    present = sizes.nonzero().squeeze(1).numpy()
    # A stable sort keeps complete ties in order of (name, group).
    order = present[np.lexsort((hashes.numpy()[present], -norms.numpy()[present]))]
    ends = sizes.numpy()[order].cumsum(dtype=np.int64)
    num_chosen = int(np.searchsorted(ends, k, side="right"))
    if k and not num_chosen:
        raise UserError(
            f"the most important group has {int(ends[0])} weights, but only {k} are to be selected: raise the density, "
            "or select smaller groups"
        )
    return torch.from_numpy(np.sort(order[:num_chosen]))
