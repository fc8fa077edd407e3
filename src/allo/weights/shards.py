"""A sharded model's rows in this process: FSDP2 cuts each tensor along its first dimension, one part a rank.

The rows of a rank are one contiguous interval of the tensor's flat indices. All functions take whole tensors too: then
the interval is all of it, and the only rank is its own group.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

Interval = tuple[int, int]
"""The first flat index of a rank's rows, and the one after the last."""


def is_shard(tensor: Tensor) -> bool:
    """Return whether this process has only some rows of a tensor."""
    return hasattr(tensor, "device_mesh")


def own_rows(tensor: Tensor) -> Tensor:
    """Return this rank's rows, which share the tensor's memory: all of a whole tensor."""
    if not is_shard(tensor):
        return tensor.data
    shard: Any = tensor
    with torch.no_grad():
        rows: Tensor = shard.to_local()
    return rows


def own_interval(tensor: Tensor) -> Interval:
    """Return the interval of the flat indices that this rank's rows have in the whole tensor."""
    if not is_shard(tensor):
        return 0, tensor.numel()
    shard: Any = tensor
    mesh = shard.device_mesh
    return interval_of(tuple(tensor.shape), mesh.get_local_rank(mesh.ndim - 1), mesh.size(mesh.ndim - 1))


def interval_of(shape: tuple[int, ...], place: int, num_shards: int) -> Interval:
    """Return the flat interval of one of `num_shards` parts: equal numbers of rows, the last ones with fewer or none."""
    rows, width = shape[0], math.prod(shape[1:])
    each = -(-rows // num_shards)
    return min(place * each, rows) * width, min((place + 1) * each, rows) * width


def within(indices: Tensor, interval: Interval) -> Tensor:
    """Return those of sorted flat `indices` that lie in an interval, less its start."""
    return indices[span(indices, interval)] - interval[0]


def span(indices: Tensor, interval: Interval) -> slice:
    """Return where those of sorted flat `indices` are that lie in an interval."""
    return slice(*torch.searchsorted(indices, torch.tensor(interval, device=indices.device)).tolist())


@dataclass(frozen=True)
class Ranks:
    """The ranks that hold one model's parts: `place` of this one among `num`; a whole model has one part.

    `is_copy`: other ranks, with an earlier copy of the model, hold the same part.
    """

    place: int = 0
    num: int = 1
    group: dist.ProcessGroup | None = None
    device: str = "cpu"
    is_copy: bool = False

    @classmethod
    def of(cls, model: nn.Module) -> "Ranks":
        param: Any
        for param in model.parameters():
            if is_shard(param):
                mesh = param.device_mesh
                last = mesh.ndim - 1
                device = str(own_rows(param).device)
                is_copy = last > 0 and mesh.get_local_rank(0) > 0
                return cls(mesh.get_local_rank(last), mesh.size(last), mesh.get_group(last), device, is_copy)
        return cls()

    def sum(self, tensor: Tensor) -> Tensor:
        """Replace each rank's `tensor` by the sum over the parts and return it. Every rank must call it."""
        if self.num > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def every(self, own: Tensor) -> Tensor:
        """Return all parts' integer tensors of one shape, in order [num, ...]."""
        found = torch.zeros(self.num, *own.shape, dtype=torch.int64, device=self.device)
        found[self.place] = own
        return self.sum(found)

    @property
    def is_first(self) -> bool:
        """Return whether this is the rank that writes what all of them found."""
        return self.place == 0 and not self.is_copy

    def fingerprint(self, own: str) -> str:
        """Return one fingerprint of all parts' fingerprints (SHA-256, hexadecimal), the same on every rank."""
        if self.num == 1:
            return own
        every = self.every(torch.tensor(list(own.encode())))
        return hashlib.sha256(bytes(every.flatten().tolist())).hexdigest()

    def wait(self) -> None:
        """Return once every rank, also of other copies, has called this."""
        if self.num > 1:
            dist.all_reduce(torch.zeros(1, device=self.device))

    def gathered(self, tensor: Tensor) -> Tensor:
        """Return all parts' one-dimensional tensors [any length] in order at the first, an empty one elsewhere; on the CPU."""
        if self.num == 1:
            return tensor.cpu()
        sizes = self.every(torch.tensor(len(tensor)))
        bits = tensor.new_empty(len(tensor), device=self.device).copy_(tensor).view(torch.uint8)
        if self.place:
            if len(bits):
                dist.send(bits, group=self.group, group_dst=0)
            return tensor[:0].cpu()
        found = [tensor.cpu()]
        for place in range(1, self.num):
            part = bits.new_empty(int(sizes[place]) * tensor.dtype.itemsize)
            if len(part):
                dist.recv(part, group=self.group, group_src=place)
            found.append(part.view(tensor.dtype).cpu())
        return torch.cat(found)


ONE = Ranks()


def reshard(model: nn.Module) -> None:
    """Give every module its own rows again; a pass without gradient leaves the outermost one's weights gathered.

    Meanwhile values written into rows would not be seen, and `named_parameters` gives other tensors.
    """
    for module in model.modules():
        if callable(give_up := getattr(module, "reshard", None)):
            give_up()


def named_rows(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield each parameter's name and this rank's rows of it."""
    reshard(model)
    yield from ((name, own_rows(param)) for name, param in model.named_parameters())
