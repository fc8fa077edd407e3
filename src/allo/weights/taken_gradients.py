"""A backward pass that passes on each tensor's gradient once complete, and keeps none."""

import contextlib
from collections.abc import Callable, Collection, Iterator

from torch import Tensor, nn

from allo.weights.layout import trained_parameters
from allo.weights.shards import own_rows, reshard

# Takes a tensor's name, the tensor and its gradient [shape], in the tensor's dtype and on its device; of a sharded tensor
# the gradient of this rank's rows.
Take = Callable[[str, nn.Parameter, Tensor], None]


@contextlib.contextmanager
def gradients_taken(model: nn.Module, take: Take, *, among: Collection[str] | None = None) -> Iterator[None]:
    """Call `take` for each trained weight in backward passes within the block; at most one gradient exists at a time.

    With `among`, other tensors have no gradient.

    By then the pass has finished with the tensor, even a tied one, so `take` may change it in place. The block
    restores each tensor's `requires_grad`. Do not combine with re-entrant checkpointing, which may deliver a shared
    tensor's gradient in two parts.
    """
    reshard(model)
    before = {param: param.requires_grad for param in model.parameters()}
    for param in before:
        param.requires_grad_(False)
    hooks = []
    for name, param in trained_parameters(model).items():
        assert param.grad is None, f"{name} has a gradient of an earlier pass"
        param.requires_grad_(among is None or name in among)
        if param.requires_grad:
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
        take(name, param, own_rows(gradient))

    return hand_over
