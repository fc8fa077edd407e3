"""Exact selection of whole groups of weights by their norm: rows, columns or blocks of every matrix.

The norm of a group is the root mean square of its entries' scores. The mean, not the sum, so that a long row
and a short one, or a block and the smaller one at the edge, are compared by what a weight of them is worth. A
tensor of one dimension (a norm, a bias) has no lines: each of its entries is a group. A tensor of three or
more counts as the matrix of its first dimension by all others.

Memory: 12 bytes a group while scores come in, some 60 while the groups are ordered, then one byte a weight of
the largest tensor beside the result.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from allo.core.selection import Entries, _with_indices, select, select_among, stable_hash
from allo.errors import UserError
from allo.granularity import WEIGHT, Granularity


@dataclass(frozen=True)
class Tiles:
    """A tensor as a matrix, cut into tiles, each a group; they are numbered line by line."""

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
        """Tiles below each other and side by side."""
        return math.ceil(self.height / self.tile_height), math.ceil(self.width / self.tile_width)

    def groups_of(self, indices: Tensor) -> Tensor:
        """The group of each entry: flat indices [n] -> int32 [n]."""
        rows, columns = indices // self.width, indices % self.width
        return rows // self.tile_height * self.grid[1] + columns // self.tile_width

    def first_entries(self, groups: Tensor) -> Tensor:
        """The flat index of each group's first entry: int64 [n] -> int64 [n]."""
        down, across = groups // self.grid[1], groups % self.grid[1]
        return down * self.tile_height * self.width + across * self.tile_width

    def entries(self, groups: Tensor) -> Tensor:
        """All entries of the given groups: int64 [n] -> sorted flat indices, int32."""
        chosen = torch.zeros(math.prod(self.grid), dtype=torch.bool)
        chosen[groups] = True
        wide = chosen.view(self.grid).repeat_interleave(self.tile_width, dim=1)[:, : self.width]
        # Line by line of tiles where a tile is one row: nothing is repeated.
        tall = wide if self.tile_height == 1 else wide.repeat_interleave(self.tile_height, dim=0)
        return tall[: self.height].reshape(-1).nonzero().squeeze(1).int()


@dataclass
class _Groups:
    """Sums over the entries of each group of one tensor, [groups]."""

    squares: Tensor
    sizes: Tensor

    def add(self, groups: Tensor, scores: Tensor) -> None:
        # One after the other in the order of the flat index, so that pieces of any length give the same bits.
        self.squares.index_add_(0, groups, scores.double().square())
        self.sizes.index_add_(0, groups, torch.ones_like(groups))

    def norms(self) -> Tensor:
        """fp32: NaN where the group has no entry, or a NaN among them."""
        return (self.squares / self.sizes).sqrt().float()


def select_groups(
    tensors: Callable[[], Iterable[tuple[str, Tensor]]],
    *,
    k: int,
    shapes: Mapping[str, tuple[int, ...]],
    granularity: str,
) -> dict[str, Tensor]:
    """The groups of the largest norms, whole, of at most k weights together, whatever the tensors' order.

    `tensors` as in `selection.select`; with granularity "weight" this is `select`. Groups are taken in order of
    their norm until the next one would not fit: the result falls short of k by less than one group. Of equal
    norms the smallest `stable_hash` of the first entry goes first, then (name, group). A selection of fewer
    weights is a part of one of more.

    Returns name -> sorted flat indices (int32, CPU); tensors with none selected are absent.
    Raises UserError for a score that is NaN, and where the first group alone has more than k weights.
    """
    if granularity == WEIGHT:
        return select(tensors, k=k)
    return _select(_with_indices(tensors()), k=k, shapes=shapes, granularity=granularity)


def select_groups_among(
    entries: Callable[[], Entries], *, k: int, shapes: Mapping[str, tuple[int, ...]], granularity: str
) -> dict[str, Tensor]:
    """As `select_groups`, over a sparse stream of (name, flat indices int32 ascending, scores fp32).

    A group comes whole or not at all.
    """
    if granularity == WEIGHT:
        return select_among(entries, k=k)
    return _select(entries(), k=k, shapes=shapes, granularity=granularity)


def _select(
    entries: Entries, *, k: int, shapes: Mapping[str, tuple[int, ...]], granularity: str
) -> dict[str, Tensor]:
    parsed = Granularity.parse(granularity)
    tiles = {name: Tiles.of(shapes[name], parsed) for name in sorted(shapes)}
    groups = _summed(entries, tiles)
    chosen = _first_to_fit(groups, tiles, k=k)
    return {name: tiles[name].entries(numbers) for name, numbers in chosen.items() if len(numbers)}


def _summed(entries: Entries, tiles: Mapping[str, Tiles]) -> dict[str, _Groups]:
    groups: dict[str, _Groups] = {}
    for name, indices, scores in entries:
        if name not in groups:
            num_groups = math.prod(tiles[name].grid)
            groups[name] = _Groups(
                squares=torch.zeros(num_groups, dtype=torch.float64),
                sizes=torch.zeros(num_groups, dtype=torch.int32),
            )
        groups[name].add(tiles[name].groups_of(indices.cpu()), scores.detach().cpu())
    return groups


def _first_to_fit(groups: Mapping[str, _Groups], tiles: Mapping[str, Tiles], *, k: int) -> dict[str, Tensor]:
    """The numbers (sorted, int64) of the first groups, in order of the norm, that have at most k weights."""
    names = [name for name in tiles if name in groups]
    numbers, norms, sizes, hashes = [], [], [], []
    for name in names:
        present = groups[name].sizes.nonzero().squeeze(1)
        numbers.append(present.numpy())
        norms.append(groups[name].norms()[present].numpy())
        sizes.append(groups[name].sizes[present].numpy())
        first = tiles[name].first_entries(present)
        hashes.append(stable_hash(name, first).numpy())
        if bad := np.isnan(norms[-1]).nonzero()[0].tolist():
            raise UserError(
                f"tensor {name}, in the group of flat index {int(first[bad[0]])}: an importance score is NaN, so "
                "groups cannot be ranked; look for NaN or infinite values in the model's weights or gradients"
            )
    # A stable sort: what is equal in both stays in order of (name, group).
    order = np.lexsort((np.concatenate(hashes), -np.concatenate(norms)))
    ends = np.concatenate(sizes)[order].cumsum(dtype=np.int64)
    num_chosen = int(np.searchsorted(ends, k, side="right"))
    if k and not num_chosen:
        raise UserError(
            f"the most important group has {int(ends[0])} weights, and only {k} are to be selected: "
            "raise the density, or select smaller groups"
        )
    chosen = np.sort(order[:num_chosen])
    bounds = np.cumsum([0, *(len(part) for part in numbers)])
    first_of = np.searchsorted(chosen, bounds)
    return {
        name: torch.from_numpy(numbers[i][chosen[first_of[i] : first_of[i + 1]] - bounds[i]])
        for i, name in enumerate(names)
    }
