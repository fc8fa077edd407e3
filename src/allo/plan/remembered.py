"""Results without numbers, remembered by the shapes that they were made from.

The layers of a model repeat the same operations on the same shapes, and torch takes most of a millisecond to infer each.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from allo.models.internals import check

check(__name__)

_CONSTANTS = (type(None), bool, int, float)


def described(value: Any, tensors: list[Tensor]) -> Hashable:
    """Describe an operation's argument by all that a result's shape depends on, and append its tensors to `tensors`.

    Numbers of tensors are left out: of a tensor with numbers, only its shape is used beside one without.
    """
    if isinstance(value, Tensor):
        tensors.append(value)
        place = value.fake_device if isinstance(value, FakeTensor) else None
        return place, value.dtype, value.shape, value.stride(), value.is_conj()
    if isinstance(value, (list, tuple)):
        return type(value), *[described(each, tensors) for each in value]
    return type(value), value  # 2 and 2.0 are equal, but make results of different dtypes


def sliced(mode: FakeTensorMode, tensor: FakeTensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return a slice of a tensor without numbers, faster than torch's own inference."""
    range_of = torch.ops.aten.slice.Tensor(
        _view(tensor, int(tensor.storage_offset()), tensor.shape, tensor.stride()), *args, **kwargs
    )
    return FakeTensor(mode, range_of, tensor.fake_device)


def _view(
    of: Tensor, offset: int, shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype | None = None
) -> Tensor:
    """Return a tensor on the meta device with the storage of `of`."""
    return torch.empty(0, dtype=dtype or of.dtype, device="meta").set_(
        of.untyped_storage(), offset, shape, stride
    )


@dataclass(frozen=True)
class _Made:
    """A tensor of a result: a new one, or a view of the argument numbered `viewed`, `offset` entries further on."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device
    viewed: int | None

    def again(self, mode: FakeTensorMode, tensors: Sequence[Tensor]) -> Tensor:
        if self.viewed is None:
            made = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")
        else:
            viewed = tensors[self.viewed]
            made = _view(
                viewed, int(viewed.storage_offset()) + self.offset, self.shape, self.stride, self.dtype
            )
        return FakeTensor(mode, made, self.device)


@dataclass(frozen=True)
class Remembered:
    """An operation's result: its parts are tensors to make, numbers of arguments that are returned, and constants."""

    parts: tuple[_Made | int | tuple[Any], ...]
    spec: TreeSpec | None  # None: one tensor

    @classmethod
    def of(cls, result: Any, tensors: Sequence[Tensor]) -> "Remembered | None":
        """Return what is needed to make `result` again; None if it has numbers or storage of a form of its own."""
        leaves, spec = ([result], None) if isinstance(result, Tensor) else tree_flatten(result)
        made = [_storage(leaf) for leaf in leaves if isinstance(leaf, Tensor)]
        new = [storage for storage in made if storage not in set(map(_storage, tensors))]
        parts = [_part(leaf, tensors) for leaf in leaves]
        if not made or len(set(new)) < len(new) or None in parts:
            return None
        return cls(tuple(part for part in parts if part is not None), spec)

    def again(self, mode: FakeTensorMode, tensors: Sequence[Tensor]) -> Any:
        made = [
            part.again(mode, tensors)
            if isinstance(part, _Made)
            else part[0]
            if isinstance(part, tuple)
            else tensors[part]
            for part in self.parts
        ]
        return made[0] if self.spec is None else tree_unflatten(made, self.spec)


def _part(leaf: Any, tensors: Sequence[Tensor]) -> "_Made | int | tuple[Any] | None":
    if not isinstance(leaf, Tensor):
        return (leaf,) if isinstance(leaf, _CONSTANTS) else None
    same = next((number for number, tensor in enumerate(tensors) if tensor is leaf), None)
    if same is not None:
        return same
    if not isinstance(leaf, FakeTensor) or leaf.is_conj() or leaf.is_neg():
        return None
    storage = leaf.untyped_storage()
    viewed = next(
        (number for number, tensor in enumerate(tensors) if _storage(tensor) == storage._cdata), None
    )
    made = _Made(leaf.shape, leaf.stride(), int(leaf.storage_offset()), leaf.dtype, leaf.fake_device, viewed)
    if viewed is None:
        least = torch.empty_strided(made.shape, made.stride, dtype=made.dtype, device="meta")
        return made if not made.offset and least.untyped_storage().nbytes() == storage.nbytes() else None
    if tensors[viewed].element_size() != leaf.element_size():  # offsets are in other units
        return None
    return replace(made, offset=made.offset - int(tensors[viewed].storage_offset()))


def _storage(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address
