"""The places of a tensor's selected entries: how to gather them, write them back, and what memory they take.

`SelectedWeights` has no other description of a tensor's selection. Values are always in the order of the flat index.
Whole rows or columns of a matrix are stored as their numbers, single entries as 16 bits within blocks of 65,536.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from allo.weights.shards import reshard

BLOCK_BITS = 16
_LOW = (1 << BLOCK_BITS) - 1


def has_numbers(tensor: Tensor) -> bool:
    """Return whether a tensor has values, unlike those of a rehearsal (`allo.plan.rehearsal`)."""
    return not hasattr(tensor, "fake_mode")


class Places(ABC):
    """The selected entries of a tensor of one shape; all methods take tensors of that shape."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Return the bytes of the description itself."""

    @abstractmethod
    def gather(self, tensor: Tensor) -> Tensor:
        """Return the selected entries [k] as a new flat tensor in `tensor`'s dtype."""

    @abstractmethod
    def scatter(self, tensor: Tensor, values: Tensor) -> None:
        """Write `values` [k] to the selected entries, in place, in `tensor`'s dtype."""

    def exchange(self, tensor: Tensor, values: Tensor) -> Tensor:
        """Write `values` to the selected entries, in place, and return the previous ones, both [k]."""
        before = self.gather(tensor)
        self.scatter(tensor, values)
        return before

    def add_to(self, total: Tensor, tensor: Tensor) -> None:
        """Add the selected entries to `total` [k], in `total`'s dtype."""
        total.add_(self.gather(tensor))


@dataclass(frozen=True, eq=False)
class Everything(Places):
    """Every entry."""

    num_bytes = 0

    def gather(self, tensor: Tensor) -> Tensor:
        return tensor.reshape(-1).clone()

    def scatter(self, tensor: Tensor, values: Tensor) -> None:
        tensor.view(-1).copy_(values.reshape(-1))

    def add_to(self, total: Tensor, tensor: Tensor) -> None:
        total.add_(tensor.reshape(-1))


@dataclass(frozen=True, eq=False)
class Rows(Places):
    """Whole rows (of the first dimension): `rows` int32 [n], sorted."""

    rows: Tensor

    @property
    def num_bytes(self) -> int:
        return self.rows.nbytes

    def gather(self, tensor: Tensor) -> Tensor:
        return tensor.index_select(0, self.rows).view(-1)

    def scatter(self, tensor: Tensor, values: Tensor) -> None:
        lines = values.to(tensor.dtype).view(len(self.rows), *tensor.shape[1:])
        tensor.index_copy_(0, self.rows.long(), lines)


@dataclass(frozen=True, eq=False)
class Columns(Places):
    """Whole columns of a matrix: `columns` int32 [n], sorted."""

    columns: Tensor

    @property
    def num_bytes(self) -> int:
        return self.columns.nbytes

    def gather(self, tensor: Tensor) -> Tensor:
        return tensor.index_select(1, self.columns).view(-1)

    def scatter(self, tensor: Tensor, values: Tensor) -> None:
        lines = values.to(tensor.dtype).view(len(tensor), len(self.columns))
        tensor.index_copy_(1, self.columns.long(), lines)


@dataclass(frozen=True, eq=False)
class Entries(Places):
    """Single entries: `low` int16 [k] has the low 16 bits of each flat index, block after block.

    `starts` and `sizes`, int32: the first flat index and the number of entries of each non-empty block.
    """

    low: Tensor
    starts: Tensor
    sizes: Tensor

    @classmethod
    def at(cls, indices: Tensor) -> "Entries":
        """Build from sorted flat `indices`, int32 [k]."""
        blocks, sizes = (indices >> BLOCK_BITS).unique_consecutive(return_counts=True)
        # The conversion wraps: the upper half of a block gets negative numbers.
        return cls((indices & _LOW).to(torch.int16), (blocks << BLOCK_BITS).int(), sizes.int())

    @classmethod
    def without_numbers(cls, indices: Tensor, size: int) -> "Entries":
        """Build from indices without numbers, as if they were spread over all `size` entries."""
        blocks = indices.new_empty(min(len(indices), -(-size >> BLOCK_BITS)))
        return cls(indices.to(torch.int16), blocks, blocks.clone())

    @property
    def num_bytes(self) -> int:
        return self.low.nbytes + self.starts.nbytes + self.sizes.nbytes

    def indices(self) -> Tensor:
        """Return the flat indices, int32 [k]."""
        starts = self.starts.repeat_interleave(self.sizes, output_size=len(self.low))
        return starts.add_(self.low.view(torch.uint16).int())

    def gather(self, tensor: Tensor) -> Tensor:
        return gather(tensor, self.indices())

    def scatter(self, tensor: Tensor, values: Tensor) -> None:
        scatter(tensor, self.indices(), values)

    def exchange(self, tensor: Tensor, values: Tensor) -> Tensor:
        indices = self.indices()
        before = gather(tensor, indices)
        scatter(tensor, indices, values)
        return before


@dataclass(frozen=True, eq=False)
class Patch:
    """Other values for some entries of live tensors, to be put in and taken out again, bit for bit.

    By name: the tensors, of a sharded `model` this rank's rows; the places in those that it changes; and the values [k] that
    are not in place now.
    """

    tensors: dict[str, Tensor]
    places: dict[str, Places]
    values: dict[str, Tensor]
    model: nn.Module | None = None

    def exchange(self) -> None:
        """Exchange the entries in the tensors with those kept here."""
        if self.model is not None:
            reshard(self.model)
        for name, places in self.places.items():
            data = self.tensors[name].data
            self.values[name] = places.exchange(data, self.values[name].to(data.device))

    @contextmanager
    def exchanged(self) -> Iterator[None]:
        """Put the values in for a block, and take them out for a block inside of that, also on an exception."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()


def places_of(indices: Tensor, shape: tuple[int, ...]) -> Places:
    """Return the smallest description of sorted, unique flat `indices` (int32 [k]) in a tensor of `shape`."""
    size = math.prod(shape)
    if len(indices) == size:
        return Everything()
    if not has_numbers(indices):
        return Entries.without_numbers(indices, size)
    if len(shape) >= 2 and len(indices):
        width = size // shape[0]
        if len(indices) % width == 0:
            lines = indices.view(-1, width)
            if bool((lines[:, 0] % width == 0).all() and (lines[:, -1] - lines[:, 0] == width - 1).all()):
                return Rows((lines[:, 0] // width).int())
    if len(shape) == 2 and len(indices) and len(indices) % shape[0] == 0:
        lines = indices.view(shape[0], -1)
        starts = torch.arange(shape[0], dtype=indices.dtype, device=indices.device) * shape[1]
        if bool((lines - starts[:, None] == lines[0]).all()) and int(lines[0, -1]) < shape[1]:
            return Columns(lines[0].clone())
    return Entries.at(indices)


def gather(tensor: Tensor, indices: Tensor) -> Tensor:
    """Return the entries at flat `indices` (int32 or int64 [k]) as a new flat tensor."""
    return tensor.reshape(-1).index_select(0, indices)


def scatter(tensor: Tensor, indices: Tensor, values: Tensor) -> None:
    """Write `values` [k] to the entries at flat `indices` (int32 or int64), in place, in `tensor`'s dtype."""
    tensor.view(-1).index_copy_(0, indices.long(), values.to(tensor.dtype))
