"""Checks for NaN and infinite weights, with which training and sampling give garbage without an error."""

from collections.abc import Iterable

import torch
from torch import Tensor

from allo.errors import UserError
from allo.weights.places import has_numbers

_PIECE = 1 << 24  # entries checked at a time, which bounds the copy that a dtype without `aminmax` needs
_NARROW = 1  # bytes: torch has no `aminmax` for the 8-bit floats


def is_finite(tensor: Tensor) -> bool:
    """Return True if every entry is finite, as integers and tensors without numbers are.

    Reads once and makes no tensor of the same size.
    """
    if not tensor.is_floating_point() or tensor.numel() == 0 or not has_numbers(tensor):
        return True
    for piece in tensor.detach().reshape(-1).split(_PIECE):
        wide = piece.float() if piece.dtype.itemsize == _NARROW else piece
        # The minimum and the maximum are NaN if any entry is.
        if not torch.stack(torch.aminmax(wide)).isfinite().all():
            return False
    return True


def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return "tensor NAME has 3 of 16 entries that are NaN or infinite" for the first such tensor, otherwise None."""
    for name, tensor in tensors:
        if not is_finite(tensor):
            num = sum(
                int((~piece.float().isfinite()).sum()) for piece in tensor.detach().reshape(-1).split(_PIECE)
            )
            return f"tensor {name} has {num:,} of {tensor.numel():,} entries that are NaN or infinite"
    return None


def check_finite(
    tensors: Iterable[tuple[str, Tensor]], *, where: str, advice: str, kind: type[UserError] = UserError
) -> None:
    """Raise `kind`, a UserError that names the tensor, unless every entry of every tensor is finite."""
    found = first_not_finite(tensors)
    if found is not None:
        raise kind(f"{where}: {found}. {advice}")
