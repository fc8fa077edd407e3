"""How much each weight matters: criteria of one signature, all followed by the same exact selection.

A criterion takes a tensor's weights and one statistic of the same shape and returns non-negative
fp32 scores of that shape; larger scores are selected first. Inputs may have any floating dtype.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Criterion = Callable[[Tensor, Tensor], Tensor]

_LARGEST = torch.finfo(torch.float32).max
_LARGEST_BITS = 0x7F7FFFFF


def delta(theta: Tensor, theta_tuned: Tensor) -> Tensor:
    """|theta' - theta| in fp32: what a short alignment run changed most (method 1.1)."""
    assert theta.shape == theta_tuned.shape
    return theta_tuned.to(torch.float32, copy=True).sub_(theta.float()).abs_()


def bottom(theta: Tensor, theta_tuned: Tensor) -> Tensor:
    """The least changed weights first: strictly decreasing in `delta`, finite.

    The fp32 bit patterns are mirrored (largest finite one minus that of the delta), so that
    distinct deltas keep distinct scores, which 1 / delta or -delta + c would not. An infinite
    delta scores as the largest finite one.
    """
    bits = delta(theta, theta_tuned).clamp_(max=_LARGEST).view(torch.int32)
    return (_LARGEST_BITS - bits).view(torch.float32)


def gradient(theta: Tensor, grad_sum: Tensor) -> Tensor:
    """|sum g|, the gradient accumulated over the data."""
    assert theta.shape == grad_sum.shape
    return grad_sum.float().abs()


def fisher(theta: Tensor, grad_square_sum: Tensor) -> Tensor:
    """sum g^2 over single pairs, the diagonal of the empirical Fisher information (unnormalised)."""
    assert theta.shape == grad_square_sum.shape
    return grad_square_sum.float()


def taylor(theta: Tensor, grad_sum: Tensor) -> Tensor:
    """|theta * sum g|, the first-order change of the loss if the weight were removed."""
    assert theta.shape == grad_sum.shape
    return (theta.float() * grad_sum.float()).abs_()


def magnitude(theta: Tensor, unused: Tensor) -> Tensor:
    """|theta|, a control that looks at no data."""
    return theta.float().abs()


def last(theta: Tensor, layers: Tensor) -> Tensor:
    """The place of a weight's layer, a control that looks at depth alone: `layers` is `layer_of` of its tensor."""
    assert theta.shape == layers.shape
    return layers.float()


def layer_of(name: str) -> int:
    """Of a tensor `model.layers.7.mlp.up_proj.weight` 8: the first number in its name, and 1; 0 outside of layers."""
    return next((int(part) + 1 for part in name.split(".") if part.isdecimal()), 0)


def random(theta: Tensor, hashes: Tensor) -> Tensor:
    """Uniform in [0, 1), a control: `hashes` is `selection.stable_hash` of each entry under a seed.

    The top 24 of the 32 hash bits fit fp32 exactly; ties are settled by the selection itself.
    """
    assert theta.shape == hashes.shape and hashes.dtype == torch.int64
    return (hashes >> 8).float() / (1 << 24)
