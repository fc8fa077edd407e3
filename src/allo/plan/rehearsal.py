"""A rehearsal: code runs as it would, on tensors that have shapes and no numbers.

Weights, activations, gradients and optimizer state take no memory and no arithmetic, so that the step of a
model that does not fit can be followed operation by operation. Ids, masks and indices are real: what
depends on them, such as the choice of an attention kernel, is decided as in a run.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

from allo.plan.live_bytes import LiveBytes

_SMALL = 2  # bytes of an entry: 16 and 8 bits hold numbers or parts of them, never an index or an id

_aten = torch.ops.aten


class Rehearsal(LiveBytes):
    """Within it operations make tensors without numbers; it counts the bytes that they would take.

        with Rehearsal() as rehearsal:
            model = LlamaForCausalLM(config)
            model(input_ids).logits.sum().backward()
        rehearsal.peak

    A number that code asks for (`tensor.item()`) is 0, a truth value is true, and where a shape follows from
    numbers (`nonzero`) it is the largest that it can be. Tensors are on the CPU, so attention is its fused
    kernel: like a GPU's, it keeps its output and a log-sum a query, and no matrix of scores.
    """

    _without_numbers: FakeTensorMode

    def __enter__(self) -> "Rehearsal":
        self._without_numbers = FakeTensorMode(allow_non_fake_inputs=True)
        super().__enter__()
        return self

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        first = next((tensor for tensor in tensors if isinstance(tensor, FakeTensor)), None)
        if func is torch.ops.prim.device.default and first is not None:
            return first.fake_device
        if func is _aten._local_scalar_dense.default and first is not None:
            return True if first.dtype == torch.bool else 0.0 if first.is_floating_point() else 0
        if func is _aten.nonzero.default and first is not None:
            return _every_place(first)
        if func is _aten.index.Tensor:
            args = (args[0], _as_places(args[1]))
        if first is not None:
            args, kwargs = tree_map_only(Tensor, self._emptied, (args, kwargs))
            with self._without_numbers:
                return func(*args, **kwargs)
        if not tensors:
            with self._without_numbers:
                made = func(*args, **kwargs)
            if isinstance(made, Tensor) and _holds_numbers(made):
                return made
        return tree_map_only(
            Tensor,
            lambda made: self._emptied(made) if _holds_numbers(made) else made,
            func(*args, **kwargs),
        )

    def _emptied(self, tensor: Tensor) -> Tensor:
        """A tensor without numbers in place of `tensor`, which it does not keep alive."""
        if isinstance(tensor, FakeTensor):
            return tensor
        with self._without_numbers:
            return torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
            )


def _as_places(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """A mask among indices as the indices of its true entries, while they are known."""
    places: list[Tensor | None] = []
    for index in indices:
        if index is None or index.dtype != torch.bool:
            places.append(index)
        else:
            found = _every_place(index) if isinstance(index, FakeTensor) else index.nonzero()
            places += found.unbind(1)
    return places


def _every_place(mask: Tensor) -> Tensor:
    return torch.ones(mask.shape, dtype=torch.bool).nonzero()


def _holds_numbers(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or (tensor.dtype != torch.bool and tensor.element_size() <= _SMALL)
