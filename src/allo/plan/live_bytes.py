"""The bytes of tensors alive while code runs: the peak, and its parts."""

import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from allo.models.internals import check

check(__name__)


class LiveBytes(TorchDispatchMode):
    """A counter of each storage's bytes, from the operation that makes it until its last tensor is gone.

        with LiveBytes() as live:
            model(input_ids).loss.backward()
        live.peak

    Results of torch's operations are counted, forward and backward, with views counted once. A kernel's scratch
    memory is not, nor are earlier tensors, unless they are given to `hold`. `kind` names a new tensor's kind for
    `at_peak`, which holds the bytes of each kind at the moment of the peak. `moments` holds the same of the highest
    moment at which a tensor of each kind, dtype and shape was made.
    """

    def __init__(self, kind: Callable[[Tensor], str] = lambda tensor: "tensors") -> None:
        super().__init__()
        self.kind = kind
        self.now = 0
        self.peak = 0
        self.at_peak: Counter[str] = Counter()
        self.moments: dict[Hashable, Counter[str]] = {}
        self._highest: dict[Hashable, int] = {}
        self._by_kind: Counter[str] = Counter()
        self._alive: dict[int, _Alive] = {}  # by the storage's address

    def hold(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Count tensors that existed before; give those already counted another kind."""
        for tensor in tensors:
            self._count(tensor, kind)
            alive = self._alive[tensor.untyped_storage()._cdata]
            self._by_kind[alive.kind] -= alive.size
            self._by_kind[kind] += alive.size
            alive.kind = kind

    def start_again(self) -> None:
        """Measure the peak from now on."""
        self.peak, self.at_peak = self.now, self._by_kind.copy()
        self.moments, self._highest = {None: self.at_peak}, {None: self.now}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = self.run(func, args, kwargs or {})
        if not func._schema.is_mutable:  # otherwise it returns its own arguments
            for tensor in tree_leaves(result):
                if isinstance(tensor, Tensor):
                    self._count(tensor, self.kind(tensor))
        return result

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operation."""
        return func(*args, **kwargs)

    def _count(self, tensor: Tensor, kind: str) -> None:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._alive:
            return

        def release(_: Any) -> None:
            gone = self._alive.pop(address)
            self.now -= gone.size
            self._by_kind[gone.kind] -= gone.size

        self._alive[address] = _Alive(weakref.ref(storage, release), storage.nbytes(), kind)
        self.now += storage.nbytes()
        self._by_kind[kind] += storage.nbytes()
        moment = kind, tensor.dtype, tensor.shape if tensor.ndim > 1 else None
        if self.now > self._highest.get(moment, 0):
            self._highest[moment], self.moments[moment] = self.now, self._by_kind.copy()
        if self.now > self.peak:
            self.peak, self.at_peak = self.now, self._by_kind.copy()


@dataclass
class _Alive:
    storage: Any  # a weak reference
    size: int
    kind: str
