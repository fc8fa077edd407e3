"""A rehearsal: code runs as usual, but on tensors with shapes and no numbers.

Weights, activations, gradients and optimizer state take no memory and no arithmetic. So even a step of a model that
does not fit can be followed operation by operation. Ids, masks and indices are real, so decisions that depend on
them, such as the attention kernel, are made as in a run.
"""

import functools
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

from allo.models.internals import check
from allo.plan.live_bytes import LiveBytes
from allo.plan.remembered import Remembered, described, sliced

check(__name__)

_SMALL = 2  # bytes of an entry: 16 and 8 bits hold numbers or parts of them, never an index or an id

_aten = torch.ops.aten
_REMEMBERED: dict[Hashable, Remembered] = {}


class Rehearsal(LiveBytes):
    """A context whose operations make tensors without numbers, and which counts the bytes they would take.

        with Rehearsal() as rehearsal:
            model = LlamaForCausalLM(config)
            model(input_ids).logits.sum().backward()
        rehearsal.peak

    A number that code asks for (`tensor.item()`) is 0, and a truth value is true. A shape that follows from numbers
    (`nonzero`) is the largest possible. Tensors are on the CPU, so attention uses the fused kernel. Like a GPU's, it
    keeps its output and a log-sum per query, but no matrix of scores.
    """

    _without_numbers: FakeTensorMode

    def __enter__(self) -> "Rehearsal":
        self._without_numbers = FakeTensorMode(allow_non_fake_inputs=True)
        super().__enter__()
        return self

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):  # asked for most often
            return args[0].fake_device
        if _is_in_place(func) and isinstance(args[0], FakeTensor):  # which has no numbers to change
            return args[0]
        tensors: list[Tensor] = []
        try:
            call = func, torch.get_default_dtype(), described((args, *kwargs.items()), tensors)
            known = _REMEMBERED.get(call)
        except TypeError:  # an argument without hash, such as a generator
            return self._run(
                func, args, kwargs, [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
            )
        if known is not None:
            return known.again(self._without_numbers, tensors)
        result = self._run(func, args, kwargs, tensors)
        if _follows_from_shapes(func, tensors):
            remembered = Remembered.of(result, tensors)
            if remembered is not None:
                _REMEMBERED[call] = remembered
        return result

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]) -> Any:
        first = next((tensor for tensor in tensors if isinstance(tensor, FakeTensor)), None)
        if func is _aten._local_scalar_dense.default and first is not None:
            return True if first.dtype == torch.bool else 0.0 if first.is_floating_point() else 0
        if func is _aten.nonzero.default and first is not None:
            return _every_place(first)
        if func is _aten.index.Tensor:
            args = (args[0], _as_places(args[1]))
        if func is _aten._grouped_mm.default and first is not None:  # by its rules, experts are in bf16
            with self._without_numbers:
                made = func(*tree_map_only(Tensor, _in_bf16, args), **tree_map_only(Tensor, _in_bf16, kwargs))
                return made.to(first.dtype)
        if func is _aten.slice.Tensor and first is not None:  # ranges of a flat vector, each another
            return sliced(self._without_numbers, first, *args[1:], **kwargs)
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
        """Return a tensor without numbers in place of `tensor`, which it does not keep alive."""
        if isinstance(tensor, FakeTensor):
            return tensor
        with self._without_numbers:
            return torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
            )


@functools.cache
def _is_in_place(func: Any) -> bool:
    """Return whether an operation writes its first argument's numbers and returns it, with the same shape."""
    writes = func._schema.arguments[:1] and func._schema.arguments[0].is_write
    return bool(writes) and func._schema.name.endswith("_") and torch.Tag.inplace_view not in func.tags


def _follows_from_shapes(func: Any, tensors: Sequence[Tensor]) -> bool:
    """Return whether a result depends on the arguments' shapes alone, and leaves their own as they are."""
    if func is _aten.nonzero.default or (func is _aten.index.Tensor and any(map(_is_mask, tensors))):
        return False
    if func is _aten.as_strided.default or torch.Tag.inplace_view in func.tags:
        return False
    return not tensors or any(isinstance(tensor, FakeTensor) for tensor in tensors)


def _is_mask(tensor: Tensor) -> bool:
    return tensor.dtype == torch.bool


def _in_bf16(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor


def _as_places(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Replace masks among indices with the indices of their true entries, while they are known."""
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
