"""The selected entries of one tensor: where they lie, their masters, their gradient, their slots."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from allo.errors import UserError
from allo.weights.eight_bit import BLOCK
from allo.weights.places import Places
from allo.weights.split_master import join, split


@dataclass
class Part:
    """A range of one flat vector, which holds the fp32 masters; `slots` are in the tensor's dtype."""

    name: str
    param: nn.Parameter
    places: Places
    flat: nn.Parameter
    range: slice
    slots: dict[str, Tensor] = field(default_factory=dict)

    # Ranges begin at multiples of it.
    ALIGN: ClassVar[int] = 1

    @staticmethod
    def vector(length: int, *, device: torch.device) -> nn.Parameter:
        """A flat vector, without its values."""
        return nn.Parameter(torch.empty(length, device=device))

    def __post_init__(self) -> None:
        self.take(self.live())

    def live(self) -> Tensor:
        """A copy of the selected entries as they stand in the model."""
        return self.places.gather(self.param.data)

    @property
    def master(self) -> Tensor:
        """fp32 [k]: a view."""
        return self.flat.data[self.range]

    def take(self, master: Tensor) -> None:
        """Take up masters [k]; `write_back` puts them into the model."""
        self.master.copy_(master)

    def write_back(self) -> None:
        """Put the masters into the model, rounded to its dtype."""
        self.places.scatter(self.param.data, self.master)

    @property
    def grad(self) -> Tensor:
        """The gathered gradient [k], in the flat vector's dtype: a view, zeros at first."""
        if self.flat.grad is None:
            self.flat.grad = torch.zeros(len(self.flat), dtype=self.flat.dtype, device=self.flat.device)
        return self.flat.grad[self.range]

    def capture(self, slot: str) -> None:
        """Keep the selected entries' present bits."""
        self.slots[slot] = self.live()

    def exchange(self, slot: str) -> None:
        """Swap the selected entries' bits with a slot's."""
        self.slots[slot] = self.places.exchange(self.param.data, self.slots[slot])

    @property
    def num_bytes(self) -> int:
        """Of places, masters and slots."""
        return self.places.num_bytes + self._master_bytes + sum(bits.nbytes for bits in self.slots.values())

    @property
    def _master_bytes(self) -> int:
        return self.master.nbytes


@dataclass
class LeanPart(Part):
    """A range of a flat vector that has a gradient but no data: the masters' upper halves are the live weights.

    `residual` has the lower halves, int16 [k], and nothing where the model is in fp32: there the live weights
    are the masters. Slots lie in host memory.
    """

    residual: Tensor = field(init=False)

    # No block of moments has entries of two tensors.
    ALIGN: ClassVar[int] = BLOCK

    @staticmethod
    def vector(length: int, *, device: torch.device) -> nn.Parameter:
        # One stored zero, seen `length` times: a gradient must have its parameter's shape and dtype.
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
        """fp32 [k]: a copy."""
        live = self.live()
        return join(live, self.residual) if len(self.residual) else live

    def take(self, master: Tensor) -> None:
        """Take up masters [k] and put them into the model."""
        for entries, mine in self.walk(len(master)):
            here = slice(entries.start - self.range.start, entries.stop - self.range.start)
            mine.copy_(master[here])

    def write_back(self) -> None:
        """They are there already."""

    def walk(self, chunk: int) -> Iterator[tuple[slice, Tensor]]:
        """Ranges of the flat vector of at most `chunk` entries and their masters, fp32.

        What is done to those in place is kept once the last range was asked for.
        """
        live = self.live()
        for start in range(0, len(live), chunk):
            here = slice(start, min(start + chunk, len(live)))
            master = join(live[here], self.residual[here]) if len(self.residual) else live[here]
            yield slice(self.range.start + here.start, self.range.start + here.stop), master
            if len(self.residual):
                live[here], self.residual[here] = split(master)
        self.places.scatter(self.param.data, live)

    def capture(self, slot: str) -> None:
        live = self.live()
        self.slots[slot] = torch.empty(live.shape, dtype=live.dtype, pin_memory=live.is_cuda).copy_(live)

    def exchange(self, slot: str) -> None:
        bits = self.slots[slot]
        bits.copy_(self.places.exchange(self.param.data, bits.to(self.param.device)))

    @property
    def _master_bytes(self) -> int:
        return self.residual.nbytes
