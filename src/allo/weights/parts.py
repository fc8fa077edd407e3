"""The selected entries of one tensor, or of this rank's rows of it: their places, master weights, gradient and slots."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from allo.errors import UserError
from allo.weights.eight_bit import BLOCK
from allo.weights.places import Places
from allo.weights.shards import own_rows
from allo.weights.split_master import join, split


@dataclass
class Part:
    """A range of one flat vector, which holds the fp32 master weights; `slots` have the tensor's dtype."""

    name: str
    param: nn.Parameter
    places: Places
    flat: nn.Parameter
    range: slice
    slots: dict[str, Tensor] = field(default_factory=dict)

    # Ranges begin at multiples of this.
    ALIGN: ClassVar[int] = 1

    @staticmethod
    def vector(length: int, *, device: torch.device) -> nn.Parameter:
        """Return an uninitialised flat vector."""
        return nn.Parameter(torch.empty(length, device=device))

    def __post_init__(self) -> None:
        self.take(self.live())

    def live(self) -> Tensor:
        """Return a copy of the selected entries as they are in the model."""
        return self.places.gather(own_rows(self.param))

    @property
    def master(self) -> Tensor:
        """Return a view of the master weights, fp32 [k]."""
        return self.flat.data[self.range]

    def take(self, master: Tensor) -> None:
        """Replace the master weights [k]; `write_back` puts them into the model."""
        self.master.copy_(master)

    def write_back(self) -> None:
        """Put the master weights into the model, rounded to its dtype."""
        self.places.scatter(own_rows(self.param), self.master)

    @property
    def grad(self) -> Tensor:
        """Return a view of the gathered gradient [k], in the flat vector's dtype, zeros at first."""
        if self.flat.grad is None:
            self.flat.grad = torch.zeros(len(self.flat), dtype=self.flat.dtype, device=self.flat.device)
        return self.flat.grad[self.range]

    def capture(self, slot: str) -> None:
        """Save the selected entries' current bits in a slot."""
        self.slots[slot] = self.live()

    def exchange(self, slot: str) -> None:
        """Swap the selected entries' bits with those in a slot."""
        self.slots[slot] = self.places.exchange(own_rows(self.param), self.slots[slot])

    @property
    def num_bytes(self) -> int:
        """Return the bytes of places, master weights and slots."""
        return self.places.num_bytes + self._master_bytes + sum(bits.nbytes for bits in self.slots.values())

    @property
    def _master_bytes(self) -> int:
        return self.master.nbytes


@dataclass
class LeanPart(Part):
    """A range of a flat vector with a gradient but no data; the live weights are the master weights' upper halves.

    `residual` has the lower halves, int16 [k]. It is empty for a model in fp32, whose live weights are the master
    weights. Slots are in host memory.
    """

    residual: Tensor = field(init=False)

    # Keeps the entries of two tensors out of one block of moments.
    ALIGN: ClassVar[int] = BLOCK

    @staticmethod
    def vector(length: int, *, device: torch.device) -> nn.Parameter:
        # One stored zero, expanded: a gradient must have its parameter's shape and dtype.
        return nn.Parameter(torch.zeros(1, dtype=torch.bfloat16, device=device).expand(length))

    def __post_init__(self) -> None:
        if self.param.dtype not in (torch.bfloat16, torch.float32):
            raise UserError(
                f"lean: {self.name} is {str(self.param.dtype).removeprefix('torch.')}; "
                "load the model in bfloat16 or float32, or train without lean."
            )
        split_up = self.param.dtype == torch.bfloat16
        length = self.range.stop - self.range.start if split_up else 0
        self.residual = torch.zeros(length, dtype=torch.int16, device=self.param.device)

    @property
    def master(self) -> Tensor:
        """Return a copy of the master weights, fp32 [k]."""
        live = self.live()
        return join(live, self.residual) if len(self.residual) else live

    def take(self, master: Tensor) -> None:
        """Replace the master weights [k] and put them into the model."""
        for entries, mine in self.walk(len(master)):
            here = slice(entries.start - self.range.start, entries.stop - self.range.start)
            mine.copy_(master[here])

    def write_back(self) -> None:
        """Do nothing: the master weights are already in the model."""

    def walk(self, chunk: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield ranges of the flat vector, of at most `chunk` entries, and their master weights, fp32.

        In-place changes to these are kept once the iterator is exhausted.
        """
        live = self.live()
        for start in range(0, len(live), chunk):
            here = slice(start, min(start + chunk, len(live)))
            master = join(live[here], self.residual[here]) if len(self.residual) else live[here]
            yield slice(self.range.start + here.start, self.range.start + here.stop), master
            if len(self.residual):
                live[here], self.residual[here] = split(master)
        self.places.scatter(own_rows(self.param), live)

    def capture(self, slot: str) -> None:
        live = self.live()
        self.slots[slot] = torch.empty(live.shape, dtype=live.dtype, pin_memory=live.is_cuda).copy_(live)

    def exchange(self, slot: str) -> None:
        bits = self.slots[slot]
        bits.copy_(self.places.exchange(own_rows(self.param), bits.to(self.param.device)))

    @property
    def _master_bytes(self) -> int:
        return self.residual.nbytes
