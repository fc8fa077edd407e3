"""The places of a model's trained weights in the checkpoint that `save_pretrained` writes.

Masks, importances and deltas name the tensors of the checkpoint on disk. Most models train the same tensors. Others are
converted when they are loaded: an expert's matrix on disk is a slice of one tensor in memory, a name has another prefix.
transformers knows these conversions; here they are run backwards on position numbers, which shows where each entry
lies, whatever the conversion is made of. It must be a bijection.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from allo.errors import UserError, and_more
from allo.weights import sparse_file
from allo.weights.param_mask import ParamMask
from allo.weights.shards import reshard

Shapes = dict[str, tuple[int, ...]]


class ByName(Protocol):
    """Tensors by name: a mapping, or sums that are kept for each tensor."""

    def __getitem__(self, name: str, /) -> Tensor: ...


@dataclass(frozen=True)
class Group:
    """Live tensors that are stored together, and the tensors that they are stored as; `renames`: one, as it is."""

    live: Shapes
    stored: Shapes
    renames: bool

    @property
    def num_entries(self) -> int:
        return sum(map(math.prod, self.live.values()))


@dataclass(frozen=True, eq=False)
class Layout:
    """The tensors of `model` on disk, group by group, so that no more than one group is converted at a time.

    `asked`: the names on disk that are wanted of the groups; None: all.
    """

    model: Any
    groups: tuple[Group, ...]
    asked: Collection[str] | None = None

    @classmethod
    def of(cls, model: nn.Module) -> "Layout":
        """Return the layout of the weights that a run trains (`trained_parameters`)."""
        return cls(model, _groups(model, trained_parameters(model)))

    @classmethod
    def whole(cls, model: nn.Module) -> "Layout":
        """Return the layout of all that is saved: trained and other weights, and buffers."""
        return cls(model, _groups(model, saved_tensors(model)))

    @classmethod
    def plain(cls, tensors: Mapping[str, Tensor]) -> "Layout":
        """Return the layout of tensors that are stored as they are."""
        return cls(nn.Module(), _unconverted(tensors))

    @property
    def is_plain(self) -> bool:
        """Return True if every tensor is stored as it is, under its own name."""
        return all(group.renames and group.live == group.stored for group in self.groups)

    @property
    def shapes(self) -> Shapes:
        """Return the shapes of the tensors on disk."""
        return {name: shape for group in self.groups for name, shape in group.stored.items()}

    @property
    def live_shapes(self) -> Shapes:
        """Return the shapes of the tensors in memory."""
        return {name: shape for group in self.groups for name, shape in group.live.items()}

    def among(self, names: Collection[str]) -> "Layout":
        """Return the layout of the groups with tensors of these names on disk; it gives no others of them."""
        groups = tuple(group for group in self.groups if any(name in names for name in group.stored))
        return Layout(self.model, groups, names)

    def respelled(self) -> dict[str, str]:
        """Return the names on disk by their other spelling: without the body's prefix if they have it, or with it."""
        return {
            prefix + name if in_body and not name.startswith(prefix) else name.removeprefix(prefix): name
            for prefix in [_prefix(self.model)]
            for group in self.groups
            for in_body in [any(live.startswith(prefix) for live in group.live)]
            for name in group.stored
        }

    def copies(self, names: Set[str]) -> dict[str, str]:
        """Return those of some names on disk that hold a tied weight once more, each with the name that this layout has."""
        every, prefix = dict(self.model.named_parameters(remove_duplicate=False)), _prefix(self.model)
        first = {
            id(every[live]): (stored, live)
            for group in self.groups
            for stored, live in zip(group.stored, group.live, strict=group.renames)
            if group.renames and live in every
        }
        found = {}
        for name in names - self.shapes.keys():
            live = name if name in every else prefix + name
            stored, own = first.get(id(every.get(live)), ("", live))
            if live != own:  # otherwise it is the same name, spelled otherwise
                found[name] = stored
        return found

    def spelled_as(self, names: Collection[str]) -> "Layout":
        """Return this layout without the body's prefix if names of a mask or delta lack it and nothing is converted.

        A model that transformers alone loaded does not tell whether its folder's names have it.
        """
        prefix = _prefix(self.model)
        bare = {name: name.removeprefix(prefix) for name in self.shapes}
        if not all(group.renames for group in self.groups) or not set(bare.values()) <= set(names):
            return self
        stored = [{bare[name]: shape for name, shape in group.stored.items()} for group in self.groups]
        groups = (replace(group, stored=each) for group, each in zip(self.groups, stored, strict=True))
        return replace(self, groups=tuple(groups))

    def full_mask(self) -> ParamMask:
        """Select every weight."""
        return ParamMask.full(self.shapes)

    def stored(self, tensors: ByName) -> Iterator[tuple[str, Tensor]]:
        """Yield live tensors (weights, sums, gradients; flat or in shape) as they are on disk, with their names."""
        for group in self.groups:
            if group.renames:
                yield from zip(group.stored, (tensors[name] for name in group.live), strict=True)
                continue
            shaped = {name: tensors[name].detach().reshape(shape) for name, shape in group.live.items()}
            for name, tensor in _converted(self.model, shaped).items():
                if self.asked is None or name in self.asked:
                    yield name, tensor

    def live(
        self, indices: Mapping[str, Tensor], values: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return sorted flat indices and their values by live tensor, from those by tensor on disk.

        Without values (an empty mapping), none are returned. Raises `UserError` for a conversion that is no bijection.
        """
        found: dict[str, Tensor] = {}
        moved: dict[str, Tensor] = {}
        for group in self.groups:
            names = [name for name in group.stored if name in indices]
            if not names:
                continue
            if group.renames:
                (name,), (live,) = names, group.live
                found[live] = indices[name]
                if values:
                    moved[live] = values[name]
                continue
            places, order = self._places(group, {name: indices[name] for name in names}).sort()
            bits = torch.cat([values[name] for name in names])[order] if values else None
            start = 0
            for live, shape in group.live.items():
                end = start + math.prod(shape)
                first, last = torch.searchsorted(places, torch.tensor([start, end])).tolist()
                if first < last:
                    found[live] = (places[first:last] - start).int()
                    if bits is not None:
                        moved[live] = bits[first:last]
                start = end
        return found, moved

    def live_mask(self, mask: ParamMask) -> ParamMask:
        """Return the mask of the same weights by live tensor.

        A mask of two folders has all that they store. Raises `UserError` if its names or shapes are not those on disk,
        or if it selects entries of a tensor that is not trained.
        """
        left_out = self._left_out(mask.shapes.keys())
        if untrained := sorted(left_out & mask.indices.keys()):
            raise UserError(
                f"the mask selects entries of {untrained[0]}{and_more(untrained)}, which a run does not train: of a model "
                "of text and images only the text model's weights, of a tied weight one name, and no buffers. Select again "
                "without such tensors."
            )
        if self.is_plain and not left_out:
            return mask
        trained = {name: shape for name, shape in mask.shapes.items() if name not in left_out}
        sparse_file.check_same_shapes(trained, self.shapes, what="the mask")
        indices, _ = self.live(mask.indices, {})
        return ParamMask(indices, shapes=self.live_shapes, metadata=mask.metadata)

    def _left_out(self, stored: Set[str]) -> set[str]:
        """Return those names on disk whose tensors this model keeps as they are, ignores, or has by another name."""
        names = stored - self.shapes.keys()
        if not names:
            return set()
        whole = Layout.whole(self.model)
        kept = whole.shapes.keys() | {name for name, first in whole.copies(names).items() if first in stored}
        ignored = getattr(self.model, "_keys_to_ignore_on_load_unexpected", None) or ()
        return {name for name in names if name in kept or any(re.search(each, name) for each in ignored)}

    def check(self) -> None:
        """Raise `UserError` unless the conversions are bijections: one of each kind is looked at."""
        seen = set()
        for group in self.groups:
            kind = (tuple(group.live.values()), tuple(group.stored.values()))
            if not group.renames and kind not in seen:
                seen.add(kind)
                self.positions(group)

    def _places(self, group: Group, indices: Mapping[str, Tensor]) -> Tensor:
        """Return the places of entries on disk among all entries of the group's live tensors, one after another."""
        if sum(map(len, indices.values())) == group.num_entries:
            return torch.arange(group.num_entries)
        positions = self.positions(group)
        return torch.cat([positions[name].reshape(-1)[where.long()] for name, where in indices.items()])

    def positions(self, group: Group) -> dict[str, Tensor]:
        """Return, for each tensor on disk, the places of its entries among those of the group's live tensors."""
        dtype = torch.int32 if group.num_entries < 1 << 31 else torch.int64
        flat = torch.arange(group.num_entries, dtype=dtype).split([*map(math.prod, group.live.values())])
        shaped = zip(group.live.items(), flat, strict=True)
        positions = _converted(self.model, {name: one.view(shape) for (name, shape), one in shaped})
        met = torch.zeros(group.num_entries, dtype=torch.bool)
        for found in positions.values():
            if found.dtype != dtype or not bool(((found >= 0) & (found < len(met))).all()):
                raise _no_bijection(self.model, group)
            met[found.reshape(-1).long()] = True
        if sum(found.numel() for found in positions.values()) != len(met) or not bool(met.all()):
            raise _no_bijection(self.model, group)
        return positions


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that a run may train and counts as the model's weights; a tied one has one name.

    All of them, except in a model of text and images, sound or video: there, those of the text model and its head.
    """
    reshard(model)
    named = dict(model.named_parameters())
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "get_text_config") or config.get_text_config() is config:
        return named
    source: Any = model
    parts = (source.get_decoder(), source.get_input_embeddings(), source.get_output_embeddings())
    text = {param for part in parts if part is not None for param in part.parameters()}
    return {name: param for name, param in named.items() if param in text}


def shapes_of(model: nn.Module) -> Shapes:
    """Return the shapes of `trained_parameters`, as they are in memory."""
    return _shapes(trained_parameters(model))


def saved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the live tensors that `save_pretrained` stores: parameters and persistent buffers."""
    reshard(model)
    named = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    kept = {name: buffers[name] for name in model.state_dict() if name in buffers}
    ignored = getattr(model, "_keys_to_ignore_on_save", None) or ()
    return {name: tensor for name, tensor in (named | kept).items() if name not in ignored}


def stored_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors of the checkpoint that `save_pretrained` writes, as they are there, with their names."""
    return Layout.whole(model).stored(saved_tensors(model))


def _prefix(model: nn.Module) -> str:
    """Return what names in memory of the body's tensors begin with, which names on disk may omit."""
    return f"{getattr(model, 'base_model_prefix', '')}."


def _unconverted(tensors: Mapping[str, Tensor]) -> tuple[Group, ...]:
    shapes = _shapes(tensors)
    return tuple(Group({name: shape}, {name: shape}, renames=True) for name, shape in shapes.items())


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _groups(model: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[Group, ...]:
    conversions = _conversions(model)
    if not conversions:
        return _unconverted(tensors)
    from transformers.core_model_loading import WeightConverter, apply_converters

    # Without values, and told apart by identity: a tensor that comes out as it went in was only renamed.
    empty = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in tensors.items()
    }
    whole = _converted(model, empty)
    named = {id(tensor): name for name, tensor in whole.items()}
    converters = [
        one.reverse_transform() for one in reversed(conversions) if isinstance(one, WeightConverter)
    ]
    together: dict[str, list[str]] = {}
    for name in tensors:
        key = name if id(empty[name]) in named else apply_converters(name, converters)[0]
        together.setdefault(key, []).append(name)
    groups = []
    for names in together.values():
        live = {name: empty[name] for name in names}
        first = id(live[names[0]])
        renames = len(names) == 1 and first in named
        stored = {named[first]: live[names[0]]} if renames else _converted(model, live)
        groups.append(Group(_shapes(live), _shapes(stored), renames))
    found = [name for group in groups for name in group.stored]
    if sorted(found) != sorted(whole):  # names that depend on other tensors
        return (Group(_shapes(tensors), _shapes(whole), renames=False),)
    return tuple(groups)


def _conversions(model: nn.Module) -> list[Any]:
    """Return the conversions that `save_pretrained` would revert: those that were used to load, or the family's."""
    used: list[Any] | None = getattr(model, "_weight_conversions", None)
    if used is not None or not hasattr(model, "base_model_prefix"):
        return used or []
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import PrefixChange

    found = get_model_conversion_mapping(model, add_legacy=False)
    return [one for one in found if not isinstance(one, PrefixChange)]


def _converted(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return live tensors as they are on disk."""
    from transformers.core_model_loading import revert_weight_conversion

    try:
        found: dict[str, Tensor] = revert_weight_conversion(model, dict(tensors))
    except Exception as error:
        raise UserError(
            f"{type(model).__name__}: transformers cannot write {min(tensors)} as it is in a checkpoint "
            f"({type(error).__name__}: {error}): use another model."
        ) from error
    return found


def _no_bijection(model: nn.Module, group: Group) -> UserError:
    return UserError(
        f"{type(model).__name__}: {min(group.stored)} on disk and {min(group.live)} in memory do not hold the same "
        "weights one to one, so the weights that change cannot be named: use another model."
    )
