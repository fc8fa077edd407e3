"""The selected weights: one compact fp32 copy that any stock optimizer trains, without touching any other weight.

Bytes of state for a model of N weights and density d, in addition to one tensor's dense gradient at a time:

    d * N * (2 index + 4 master + 4 gradient + the optimizer's moments + 2 or 4 per slot)
    d * N * (2 index + 2 residual + 2 gradient + 2.03 moments)    a lean copy of a bf16 model; slots in host memory
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from allo.errors import UserError
from allo.ranks import num_ranks
from allo.weights.layout import Layout, trained_parameters
from allo.weights.lean_adamw import CHUNK, norm_in_fp32
from allo.weights.param_mask import ParamMask
from allo.weights.parts import LeanPart, Part
from allo.weights.places import Columns, Everything, Places, Rows, places_of
from allo.weights.ranks import sum_over_ranks
from allo.weights.selected_linear import LineGradients
from allo.weights.shards import Ranks, is_shard, own_interval, own_rows, reshard, within


class SelectedWeights:
    """The live, compact, trainable copy of a model's selected weights.

        selected = SelectedWeights(model, mask, slots=("ref",))
        optimizer = torch.optim.AdamW(selected.parameters(), lr=5e-6)
        loss.backward(); selected.clip_grad_norm_(1.0); optimizer.step(); selected.write_back()
        optimizer.zero_grad()

    Until `release()`, a backward pass leaves no dense gradient behind. A hook on each touched tensor adds the
    selected entries to the flat gradient and drops the rest. An `nn.Linear` with whole rows or columns selected
    computes only their gradient. Tensors without a selected weight are frozen. Unselected weights keep their bits,
    even under weight decay. Each slot keeps the selected entries' bits of another model that differs only there.

    With `lean` there is no fp32 copy: the live weights and a residual form the master weights. The flat gradient is
    bf16, and the optimizer is `LeanAdamW(selected.param_groups(...), selected.walk, lr=...)`.

    Of a sharded model, this rank has the selected entries of its own rows: its part of the flat vector, and of each slot.
    A mask may then have those entries only.

    Raises `UserError` if the mask selects nothing or its names or shapes are not the model's. Also for a lean copy of
    weights that are neither bf16 nor fp32.
    """

    def __init__(
        self, model: nn.Module, mask: ParamMask, *, slots: Sequence[str] = (), lean: bool = False
    ) -> None:
        reshard(model)
        self.ranks = Ranks.of(model)
        mask = Layout.of(model).spelled_as(mask.shapes).live_mask(mask)
        named = _named_as(model, mask)
        mask.check({name: tuple(param.shape) for name, param in named.items()})
        self._model = model
        self._swapped: str | None = None
        chosen = {name: named[name] for name in sorted(mask.indices)}
        self._parts = _lay_out(chosen, mask, LeanPart if lean else Part)
        total = self.num_selected
        if self.ranks.num > 1:
            total = int(self.ranks.sum(torch.tensor(total, device=next(iter(named.values())).device)))
        if not total:
            raise UserError(
                "the mask selects no weight, so nothing would train: make one with a higher density"
            )
        self.num_trained = total  # of all parts
        self.density = total / max(mask.num_weights, 1)
        self._trainable_before = {param: param.requires_grad for param in model.parameters()}
        touched = {part.param for part in self._parts}
        for param in model.parameters():
            param.requires_grad_(param in touched)
            param.grad = None
        self._hooks = _hooks(model, self._parts)
        for slot in slots:
            self.capture(slot)

    def parameters(self) -> list[nn.Parameter]:
        """Return one flat vector to train per device and kind (matrices; vectors, such as norms and biases).

        They hold the fp32 master weights; in a lean copy they are bf16 and have a gradient but no data.
        """
        return list(dict.fromkeys(part.flat for part in self._parts))

    def param_groups(self, *, weight_decay: float) -> list[dict[str, Any]]:
        """Return optimizer groups: weight decay for matrices, none for norms and biases."""
        decays = {part.flat: part.param.ndim >= 2 for part in self._parts}
        return [
            {"params": [flat], "weight_decay": weight_decay if decays[flat] else 0.0}
            for flat in self.parameters()
        ]

    @property
    def slots(self) -> list[str]:
        """Return the slots' names."""
        return list(self._parts[0].slots)

    def ranges(self) -> dict[str, tuple[int, int]]:
        """Return, by touched tensor, the number of its flat vector in `parameters`, and its entries here; in the vectors' order."""
        numbers = {flat: number for number, flat in enumerate(self.parameters())}
        return {part.name: (numbers[part.flat], part.range.stop - part.range.start) for part in self._parts}

    @property
    def num_selected(self) -> int:
        return sum(part.range.stop - part.range.start for part in self._parts)

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Scale the flat gradient to a norm of at most `max_norm`; return the previous norm, over all entries and parts."""
        flats = self.parameters()
        gradients = [flat.grad for flat in flats if flat.grad is not None]
        norm = norm_in_fp32(gradients)
        if self.ranks.num > 1:
            norm = self.ranks.sum(norm.square()).sqrt()
        torch.nn.utils.clip_grads_with_norm_(flats, max_norm, norm)
        return norm

    def walk(self, flat: nn.Parameter) -> Iterator[tuple[slice, Tensor]]:
        """Yield ranges of `flat` and a lean copy's fp32 master weights, which `LeanAdamW` changes in place."""
        assert self._swapped is None, f"walk while slot {self._swapped!r} is in place"
        for part in self._parts:
            if part.flat is flat:
                assert isinstance(part, LeanPart)
                yield from part.walk(CHUNK)

    def zero_grad(self) -> None:
        """Reset the gradients to zero, in the same memory."""
        for flat in self.parameters():
            if flat.grad is not None:
                flat.grad.zero_()

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass of this process's share of a loss."""
        # The gradient of a sharded model arrives as the mean over processes.
        (loss * num_ranks() if self.ranks.num > 1 else loss).backward()

    def sum_gradients_over_ranks(self, dtype: torch.dtype = torch.float32) -> None:
        """Sum the flat gradient over all processes, sent in `dtype`: once per step, and the only traffic.

        A sharded model's is summed in the backward pass.
        """
        if num_ranks() == 1 or self.ranks.num > 1:
            return
        self.gradients()  # allocates them on a rank that had no row
        for flat in self.parameters():
            assert flat.grad is not None
            flat.grad.copy_(sum_over_ranks(flat.grad.to(dtype)))

    @torch.no_grad()
    def write_back(self) -> None:
        """Put the master weights into the model, rounded to its dtype. Call after each optimizer step."""
        assert self._swapped is None, f"write_back while slot {self._swapped!r} is in place"
        reshard(self._model)
        for part in self._parts:
            part.write_back()

    @torch.no_grad()
    def capture(self, slot: str) -> None:
        """Save the selected entries' current bits under the name `slot`."""
        assert self._swapped is None, f"capture while slot {self._swapped!r} is in place"
        reshard(self._model)
        for part in self._parts:
            part.capture(slot)

    @contextlib.contextmanager
    def swapped(self, slot: str) -> Iterator[None]:
        """Give the model the bits of `slot` within the block, then restore the live bits, even on an exception."""
        assert self._swapped is None, f"slot {self._swapped!r} is already in place"
        self._exchange(slot)
        self._swapped = slot
        try:
            yield
        finally:
            self._exchange(slot)
            self._swapped = None

    @torch.no_grad()
    def _exchange(self, slot: str) -> None:
        reshard(self._model)
        for part in self._parts:
            part.exchange(slot)

    def masters(self) -> dict[str, Tensor]:
        """Return each touched tensor's fp32 entries [k], in the order of its indices: views; copies if lean."""
        return {part.name: part.master for part in self._parts}

    def slot(self, name: str) -> dict[str, Tensor]:
        """Return the entries [k] of each touched tensor that a slot keeps, in the tensor's dtype."""
        return {part.name: part.slots[name] for part in self._parts}

    def gradients(self) -> dict[str, Tensor]:
        """Return views of each touched tensor's gathered gradient [k], fp32 or lean bf16, zeros at first."""
        return {part.name: part.grad for part in self._parts}

    def state_dict(self) -> dict[str, Tensor]:
        """Return master weights and slots by tensor; a checkpoint also needs the optimizer's own state."""
        assert self._swapped is None, f"state_dict while slot {self._swapped!r} is in place"
        state = {f"{part.name}.master": part.master.to("cpu", copy=True) for part in self._parts}
        for part in self._parts:
            state |= {f"{part.name}.slot.{slot}": bits for slot, bits in part.slots.items()}
        return state

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load master weights and slots from `state_dict()` of the same mask, and write the master weights back."""
        reshard(self._model)
        for part in self._parts:
            part.take(state[f"{part.name}.master"])
            for slot in part.slots:
                part.slots[slot].copy_(state[f"{part.name}.slot.{slot}"])
        self.write_back()

    @property
    def num_bytes(self) -> int:
        """Return the bytes of places, master weights, gradient and slots, without the optimizer's moments."""
        gradient = sum(flat.nbytes for flat in self.parameters())
        return gradient + sum(part.num_bytes for part in self._parts)

    def release(self) -> None:
        """Remove the hooks and restore each tensor's `requires_grad`."""
        for hook in self._hooks:
            hook.remove()
        for param, trainable in self._trainable_before.items():
            param.requires_grad_(trainable)


def _named_as(model: nn.Module, mask: ParamMask) -> dict[str, nn.Parameter]:
    """Return the model's parameters; a tied one has its name in the mask, and so in the checkpoint."""
    every = dict(model.named_parameters(remove_duplicate=False))
    known = {param for name, param in every.items() if name in mask.shapes}
    own = trained_parameters(model)
    named = {
        name: param
        for name, param in every.items()
        if name in mask.shapes or (name in own and param not in known)
    }
    first: dict[nn.Parameter, str] = {}
    for name, param in named.items():
        if first.setdefault(param, name) != name:
            raise UserError(
                f"the mask has {first[param]} and {name}, which are one tied tensor in this model: "
                "make it from a checkpoint that stores the tensor once"
            )
    return named


def _lay_out(named: dict[str, nn.Parameter], mask: ParamMask, kind_of_part: type[Part]) -> list[Part]:
    """Assign ranges of one flat vector per (device, matrix or vector)."""
    lengths: dict[tuple[torch.device, bool], int] = {}
    ranges, places = {}, {}
    for name, param in named.items():
        assert param.is_contiguous(), f"{name} is not contiguous"
        kind = (param.device, param.ndim >= 2)
        start = -(-lengths.get(kind, 0) // kind_of_part.ALIGN) * kind_of_part.ALIGN
        own = mask.indices[name]
        if is_shard(param):
            own = within(own, own_interval(param))
        places[name] = places_of(own.to(param.device), own_rows(param).shape)
        lengths[kind] = start + own.numel()
        ranges[name] = slice(start, lengths[kind])
    flats = {kind: kind_of_part.vector(length, device=kind[0]) for kind, length in lengths.items()}
    return [
        kind_of_part(
            name=name,
            param=param,
            places=places[name],
            flat=flats[param.device, param.ndim >= 2],
            range=ranges[name],
        )
        for name, param in named.items()
    ]


def _hooks(model: nn.Module, parts: list[Part]) -> list[RemovableHandle | LineGradients]:
    """Install gradient hooks on each tensor and in each plain Linear with whole rows or columns selected."""
    hooks: list[RemovableHandle | LineGradients] = [
        part.param.register_post_accumulate_grad_hook(_collector(part, part.places)) for part in parts
    ]
    of_weight: dict[Tensor, Part] = {part.param: part for part in parts if not is_shard(part.param)}
    for module in model.modules():
        if LineGradients.is_on(module):
            raise UserError("another SelectedWeights trains this model: release() it first")
        # A subclass, or a layer with a replaced `forward`, may use its weight differently.
        if type(module) is nn.Linear and "forward" not in vars(module):
            part = of_weight.get(module.weight)
            if part and isinstance(part.places, Rows | Columns):
                hooks.append(LineGradients(module, part.places, _collector(part, Everything())))
    return hooks


def _collector(part: Part, places: Places) -> Callable[[Tensor], None]:
    """Return a hook that moves a gradient's entries at `places`, those of `part`, to the flat gradient.

    It accumulates, because re-entrant checkpointing may fire it twice in a backward pass.
    """

    def collect(tensor: Tensor) -> None:
        grad, tensor.grad = tensor.grad, None
        assert grad is not None
        places.add_to(part.grad, own_rows(grad))

    return collect
