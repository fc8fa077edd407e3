"""Weights that are no numbers (NaN) or infinite: training and sampling from them gives garbage without an error."""

from collections.abc import Iterable

import torch
from torch import Tensor

from allo.errors import UserError

_PIECE = 1 << 24  # entries looked at together: bounds what a dtype without `aminmax` needs for its copy
_NARROW = 1  # bytes: torch has no `aminmax` for the 8-bit floats


def is_finite(tensor: Tensor) -> bool:
    """Whether every entry is a finite number; whole numbers are. One pass, and no tensor of the same size is made."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    for piece in tensor.detach().reshape(-1).split(_PIECE):
        wide = piece.float() if piece.dtype.itemsize == _NARROW else piece
        # The least and the largest entry are NaN if any entry is.
        if not torch.stack(torch.aminmax(wide)).isfinite().all():
            return False
    return True


def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return "tensor NAME has 3 of 16 entries that are NaN or infinite" for the first such tensor, else None."""
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
    """Raise `kind`, a UserError that names the tensor, unless every entry of all tensors is a finite number."""
    found = first_not_finite(tensors)
    if found is not None:
        raise kind(f"{where}: {found}. {advice}")
