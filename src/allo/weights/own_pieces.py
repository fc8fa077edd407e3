"""The entries of a checkpoint that this process's rows of a model hold, whether the model is sharded, converted or neither."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from allo.weights import sparse_file
from allo.weights.checkpoints import Checkpoint
from allo.weights.fingerprints import as_bits, combine, digests, fingerprint_tensors
from allo.weights.layout import (
    ByName,
    Group,
    Layout,
    saved_tensors,
    stored_tensors,
    trained_parameters,
)
from allo.weights.param_mask import ParamMask
from allo.weights.shards import Ranks, own_interval, own_rows, within


@dataclass(frozen=True)
class Piece:
    """Entries of a tensor on disk, and their flat places in this rank's rows of a live tensor.

    `indices` are flat and ascending: a range, or int64. `places` are a slice if they are consecutive, otherwise int64.
    """

    stored: str
    live: str
    indices: range | Tensor
    places: slice | Tensor


def pieces(layout: Layout, group: Group, tensors: Mapping[str, Tensor]) -> Iterator[Piece]:
    """Yield the entries on disk that this rank's rows of a group's live `tensors` hold, by tensor on disk."""
    if group.renames:
        (stored,), (live,) = group.stored, group.live
        start, stop = own_interval(tensors[live])
        if start < stop:
            yield Piece(stored, live, range(start, stop), slice(0, stop - start))
        return
    for stored, positions in layout.positions(group).items():
        flat, before = positions.reshape(-1), 0
        for live in group.live:
            start, stop = own_interval(tensors[live])
            first, last = before + start, before + stop
            indices = ((flat >= first) & (flat < last)).nonzero().squeeze(1)
            if len(indices):
                yield Piece(stored, live, indices, flat[indices].long() - first)
            before += tensors[live].numel()


def full_mask(layout: Layout, *, among: Collection[str]) -> ParamMask:
    """Return the mask of every weight of the tensors on disk `among` these, of a sharded model of those in this rank's rows."""
    live, indices = trained_parameters(layout.model), {}
    for group in layout.groups:
        for name, shape in group.stored.items():
            size = math.prod(shape)
            interval = own_interval(live[min(group.live)]) if group.renames else (0, size)
            if name in among and size:
                sparse_file.check_reach(name, interval[1])
                indices[name] = torch.arange(*interval, dtype=torch.int32)
    return ParamMask(indices, shapes=layout.shapes, metadata={"criterion": "full", "density": "1.0"})


def own_mask(path: str | Path, model: nn.Module, *, density: float | None = None) -> ParamMask:
    """Read a mask as `ParamMask.load` does, for a sharded model those entries alone that are in this rank's rows.

    A tensor that is converted when it is loaded keeps all: its entries on disk are no interval of its rows.
    """
    live = trained_parameters(model)
    intervals = {
        name: own_interval(live[min(group.live)])
        for group in Layout.of(model).groups
        for name in group.stored
        if group.renames
    }

    def keep(name: str, indices: Tensor) -> Tensor:
        if name not in intervals:
            return indices
        return within(indices, intervals[name]) + intervals[name][0]  # without the memory of the others

    return ParamMask.load(path, density=density, keep=keep if Ranks.of(model).num > 1 else None)


def model_fingerprint(model: nn.Module) -> str:
    """Return the fingerprint of a model's checkpoint; of a sharded model one of its own, which depends on the ranks."""
    ranks = Ranks.of(model)
    if ranks.num == 1:
        return fingerprint_tensors(stored_tensors(model))
    return ranks.fingerprint(
        combine(digests((name, own_rows(each)) for name, each in saved_tensors(model).items()))
    )


def stored_entries(
    checkpoint: Checkpoint, piece: Piece, *, name: str = ""
) -> Iterator[tuple[int | Tensor, slice | Tensor, Tensor]]:
    """Yield a piece's flat indices on disk (the first of consecutive ones), its places and its stored values, in parts.

    `name` is that of the tensor in this checkpoint, if it differs.
    """
    start, first = 0, int(piece.indices[0])
    for values in checkpoint.pieces(name or piece.stored, first, int(piece.indices[-1]) + 1):
        if isinstance(piece.places, slice):
            stop = start + len(values)
            yield first, slice(start, stop), values
        else:
            assert isinstance(piece.indices, Tensor)
            stop = int(torch.searchsorted(piece.indices, first + len(values)))
            indices = piece.indices[start:stop]
            yield indices, piece.places[start:stop], values[indices - first]
        start, first = stop, first + len(values)


def beside(
    layout: Layout, live: Mapping[str, Tensor], weights: ByName, statistics: ByName
) -> Iterator[tuple[str, int | Tensor, Tensor, Tensor]]:
    """Yield this rank's weights and their statistics as they are on disk: name, flat indices or the first of them, and both flat.

    `weights` and `statistics` have the rows that this rank has of the `live` tensors.
    """
    for group in layout.groups:
        found: dict[str, list[Piece]] = {}
        for piece in pieces(layout, group, live):
            if layout.asked is None or piece.stored in layout.asked:
                found.setdefault(piece.stored, []).append(piece)
        for name, parts in found.items():
            theta, statistic = (_joined(rows, parts) for rows in (weights, statistics))
            if isinstance(first := parts[0].indices, range):
                yield name, first[0], theta, statistic
                continue
            indices, order = torch.cat([torch.as_tensor(each.indices) for each in parts]).sort()
            order = order.to(theta.device)
            yield name, indices.int(), theta[order], statistic[order.to(statistic.device)]


def _joined(rows: ByName, parts: Sequence[Piece]) -> Tensor:
    """Return the entries of a tensor on disk that several pieces hold, flat; of a single one without copying a stretch."""
    found = [rows[each.live].detach().reshape(-1)[each.places] for each in parts]
    return found[0] if len(found) == 1 else torch.cat(found)


@dataclass(frozen=True)
class Changes:
    """The differences between a model and its checkpoint: flat indices (int32) and new values by tensor on disk.

    `num`: the weights that differ, each tied one once. Of a sharded model only the first rank has them.
    """

    indices: dict[str, Tensor]
    values: dict[str, Tensor]
    num: int


def changes_from(base: Checkpoint, model: nn.Module, *, among: Collection[str]) -> Changes:
    """Return what changed in the tensors on disk `among` these, in the dtypes on disk; each rank compares its own rows."""
    layout, live, ranks = Layout.of(model), trained_parameters(model), Ranks.of(model)
    indices, values = {}, {}
    for group in layout.groups:
        if not any(name in among for name in group.stored):
            continue
        found = _differences(base, group, pieces(layout, group, live), live)
        for name, (where, new) in found.items():
            where, new = ranks.gathered(where), ranks.gathered(new)
            if len(where):
                order = where.argsort()  # a converted tensor's parts are mixed
                indices[name], values[name] = where[order], new[order]
    num = sum(map(len, indices.values()))
    for copy, first in layout.copies(base.stored.keys()).items():
        if first in indices:
            indices[copy], values[copy] = indices[first], values[first]
    return Changes(indices, values, num)


def _differences(
    base: Checkpoint, group: Group, own: Iterator[Piece], live: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return this rank's changes of a group: indices and values of every tensor on disk, perhaps none."""
    found = {
        name: ([torch.empty(0, dtype=torch.int32)], [torch.empty(0, dtype=base.stored[name].dtype)])
        for name in group.stored
    }
    for piece in own:
        rows = own_rows(live[piece.live]).reshape(-1)
        for indices, places, before in stored_entries(base, piece):
            # In the dtype on disk: the family may keep a weight in fp32 that is stored in bf16.
            now = rows[places].to("cpu", before.dtype)
            differs = (as_bits(now) != as_bits(before)).nonzero().squeeze(1)
            where = differs + indices if isinstance(indices, int) else indices[differs]
            sparse_file.check_reach(piece.stored, int(where[-1]) + 1 if len(where) else 0)
            found[piece.stored][0].append(where.int())
            found[piece.stored][1].append(now[differs])
    return {name: (torch.cat(where), torch.cat(new)) for name, (where, new) in found.items()}
