"""A backward pass that hands over each tensor's gradient once it is whole, and keeps none."""

import contextlib
from collections.abc import Callable, Iterator

from torch import Tensor, nn

# Takes a tensor's name, the tensor and its gradient [shape], in the tensor's dtype and on its device.
Take = Callable[[str, nn.Parameter, Tensor], None]


@contextlib.contextmanager
def gradients_taken(model: nn.Module, take: Take) -> Iterator[None]:
    """Within the block a backward pass calls `take` for each weight tensor, and at most one gradient lives.

    A gradient is whole when the pass has done with its tensor, also a tied one, so `take` may change the
    tensor in place. Each tensor's `requires_grad` is as before after the block. Do not combine with
    re-entrant checkpointing, which may hand over a shared tensor's gradient in two parts.
    """
    before = {param: param.requires_grad for param in model.parameters()}
    hooks = []
    for name, param in model.named_parameters():
        assert param.grad is None, f"{name} has a gradient of an earlier pass"
        param.requires_grad_(True)
        hooks.append(param.register_post_accumulate_grad_hook(_taker(name, take)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for param, trainable in before.items():
            param.requires_grad_(trainable)
            param.grad = None


def _taker(name: str, take: Take) -> Callable[[nn.Parameter], None]:
    def hand_over(param: nn.Parameter) -> None:
        gradient, param.grad = param.grad, None
        assert gradient is not None
        take(name, param, gradient)

    return hand_over
