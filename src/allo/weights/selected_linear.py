"""A linear layer with trainable whole rows or columns, whose backward pass computes only their weight gradient.

For input x [T, in] and output gradient g [T, out], the dense weight gradient is g.T @ x. Rows need g[:, rows].T @ x,
columns g.T @ x[:, columns]. A share d of the rows or columns costs a share d of the product. For columns, only the
selected columns of x are kept.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from allo.weights.places import Columns, Rows


class LineGradients:
    """A patch of `linear`, until `remove()`: only the weight gradient of `lines` is computed and sent to `collect`.

    `collect` is a post-accumulate hook: it gets a tensor and takes its `.grad`, [rows, in] or [out, columns] in the
    weight's dtype. Output, gradients of input and bias, and names stay the same. The weight itself still gets a dense
    gradient from uses outside this layer (a tied embedding, a head read by the log-probs). A copy of the layer is an
    ordinary one.
    """

    def __init__(self, linear: nn.Linear, lines: Rows | Columns, collect: Callable[[Tensor], None]) -> None:
        weight = linear.weight
        if isinstance(lines, Rows):
            shape = (len(lines.rows), linear.in_features)
        else:
            shape = (linear.out_features, len(lines.columns))
        # A one-number stand-in for the lines in the graph, expanded to their shape. Autograd thus computes their
        # gradient even if the input needs none, sums it over several uses, and passes it on when complete.
        stand_in = weight.new_zeros(()).expand(shape).requires_grad_()

        def forward(self: nn.Linear, x: Tensor) -> Tensor:
            if self.weight is not weight or not torch.is_grad_enabled():
                return nn.functional.linear(x, self.weight, self.bias)
            out: Tensor = _Linear.apply(x, weight.detach(), self.bias, stand_in, lines)
            return out

        self._linear = linear
        self._hook = stand_in.register_post_accumulate_grad_hook(collect)
        vars(linear)["forward"] = MethodType(forward, linear)

    @staticmethod
    def is_on(module: nn.Module) -> bool:
        """Return True if `module` is still patched."""
        forward = vars(module).get("forward")
        return getattr(forward, "__qualname__", "").startswith(LineGradients.__name__)

    def remove(self) -> None:
        self._hook.remove()
        del vars(self._linear)["forward"]


class _Linear(torch.autograd.Function):
    """x [..., in], weight [out, in], bias [out] or None, the lines' stand-in -> [..., out]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stand_in: Tensor, lines: Rows | Columns
    ) -> Tensor:
        used = x if isinstance(lines, Rows) else x.index_select(-1, lines.columns)
        ctx.save_for_backward(used, weight)
        ctx.lines = lines
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Under autocast the gradient has a lower-precision dtype than the saved tensors.
        used, weight = (saved.to(grad.dtype) for saved in ctx.saved_tensors)
        grad_x = grad @ weight if ctx.needs_input_grad[0] else None
        flat = grad.reshape(-1, grad.shape[-1])
        grad_bias = flat.sum(0) if ctx.needs_input_grad[2] else None
        chosen = flat.index_select(1, ctx.lines.rows) if isinstance(ctx.lines, Rows) else flat
        return grad_x, None, grad_bias, chosen.T @ used.reshape(-1, used.shape[-1]), None
