"""Sums per weight over the data, for example of gradients, in host memory."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

# Entries converted at a time: copied from an accelerator and held in fp32.
_PIECE = 1 << 20
_LOW_BITS = 16  # bits of an fp32 number that bf16 drops


class HostSums:
    """One sum per weight: 4 bytes of host memory each in `torch.float32`, 2 in `torch.bfloat16`.

    A bf16 sum rounded to nearest would lose addends below 1/256 of it. It is instead rounded up or down at random, in
    proportion, and so is correct on average for any number of addends. Each addition errs by less than 1/128 of the
    sum. The same `seed` and order give the same bits.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], *, dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> None:
        assert dtype in (torch.float32, torch.bfloat16), f"no rule to add {dtype}"
        self._sums = {name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}
        self._random = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def add(self, name: str, values: Tensor) -> None:
        """Add `values` [shape], of any floating dtype and device."""
        self._add(name, values, lambda piece: piece)

    @torch.no_grad()
    def add_squares(self, name: str, values: Tensor) -> None:
        """Add the square of `values` [shape], taken in fp32."""
        self._add(name, values, torch.square)

    def _add(self, name: str, values: Tensor, statistic: Callable[[Tensor], Tensor]) -> None:
        both = (tensor.reshape(-1).split(_PIECE) for tensor in (self._sums[name], values))
        for total, piece in zip(*both, strict=True):
            addend = statistic(piece.cpu().float())
            if total.dtype == torch.float32:
                total.add_(addend)
            else:
                total.copy_(_rounded_at_random(total.float().add_(addend), self._random))

    def __getitem__(self, name: str) -> Tensor:
        """Return the sums of one tensor [shape], in their own dtype, without copying."""
        return self._sums[name]

    @property
    def num_bytes(self) -> int:
        return sum(total.nbytes for total in self._sums.values())


def _rounded_at_random(exact: Tensor, random: torch.Generator) -> Tensor:
    """Round fp32 [n] to one of the two bf16 neighbours [n], more often to the nearer. Changes `exact`.

    A bf16 number is the upper half of an fp32 one: random lower bits carry into it in proportion to the dropped bits.
    Zeros, infinities and NaNs stay, because their lower bits are zero.
    """
    bits = exact.view(torch.int32)
    bits += torch.randint(1 << _LOW_BITS, bits.shape, generator=random, dtype=torch.int32)
    bits &= -(1 << _LOW_BITS)
    return exact.to(torch.bfloat16)
