"""The tensors whose weights may be selected, by patterns for their names on disk."""

import difflib
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from types import MappingProxyType

import torch
from torch import nn

from allo.errors import UserError, and_more
from allo.recipe.locate import KINDS, Locate
from allo.weights.experts import is_of_experts
from allo.weights.layout import Layout
from allo.weights.selection import num_to_select

Shapes = Mapping[str, tuple[int, ...]]
Kinds = Callable[[], Mapping[str, Collection[str]]]
"""Returns the names of `linear` and `embeddings`, which the layers' classes say (`kinds_of`)."""

_VISION = re.compile(r"vision|visual|multi_modal_projector")


@dataclass(frozen=True)
class Allowed:
    """The names of the tensors whose weights may be selected; `shapes` has every tensor of the model.

    `live`: the names of the tensors in memory that hold them, if a model is at hand.
    """

    names: Collection[str]
    shapes: Shapes
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    live: Collection[str] = ()

    @property
    def own_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the allowed tensors, in the model's order."""
        return {name: shape for name, shape in self.shapes.items() if name in self.names}

    @property
    def num_weights(self) -> int:
        return num_entries(self.shapes)

    @property
    def num_allowed(self) -> int:
        return num_entries(self.own_shapes)

    def words(self, density: float) -> str:
        """Return how many weights may be selected, and how many of them a density takes."""
        k = num_to_select(density, self.num_weights)
        return (
            f"{self.num_allowed:,} of {self.num_weights:,} weights may be selected, in {len(self.names)} of "
            f"{len(self.shapes)} tensors; density {density:g} is a share of all weights: {k:,}, which is "
            f"{k / self.num_allowed:.3g} of those"
        )

    @property
    def metadata(self) -> dict[str, str]:
        """Return entries for a mask's header; none if all weights may be selected."""
        given = {"include": self.include, "exclude": self.exclude}
        said = {side: ", ".join(patterns) for side, patterns in given.items() if patterns}
        return said | ({"num_allowed": str(self.num_allowed)} if said else {})


def allowed_tensors(
    shapes: Shapes,
    kinds: Kinds,
    *,
    include: Sequence[str],
    exclude: Sequence[str],
    density: float,
    key: str = "",
    others: Shapes | None = None,
    respelled: Mapping[str, str] = MappingProxyType({}),
) -> Allowed:
    """Return the tensors that `include` names, all if it is empty, without those that `exclude` names.

    An entry is a word of `KINDS`, or a pattern for a whole name as in a shell, whose `*` also crosses dots. `shapes` has
    every tensor of the model; `key` precedes "include" and "exclude" in errors. `others` are stored beside them and never
    selected, such as a vision tower; an entry may name these too. `respelled`: other names of tensors, which count for a
    pattern that names none.

    Raises UserError for an entry that names no tensor, and if fewer weights are left than `density` of all.
    """
    every = {**(others or {}), **shapes}
    named = _named(every, kinds, include, respelled, key=f"{key}include") if include else set(shapes)
    left_out = _named(every, kinds, exclude, respelled, key=f"{key}exclude")
    allowed = Allowed(shapes.keys() & named - left_out, shapes, include, exclude)
    num_weights, num_left = allowed.num_weights, allowed.num_allowed
    k = num_to_select(density, num_weights)
    if num_left < k:
        sides = {"include": include, "exclude": exclude}
        given = " and ".join(f"{key}{side}" for side, patterns in sides.items() if patterns)
        most = math.floor(1e6 * num_left / num_weights) / 1e6
        advice = (
            f"name more tensors, or lower the density to at most {most:g}"
            if num_left
            else "name other tensors"
        )
        raise UserError(
            f"{given}: {num_left:,} of the model's {num_weights:,} weights are left, and density {density:g}, a share "
            f"of all weights, asks for {k:,}: {advice}"
        )
    return allowed


def allowed_in(
    model: nn.Module, include: Sequence[str], exclude: Sequence[str], *, density: float, key: str = ""
) -> Allowed:
    """Return `allowed_tensors` of a model in memory; patterns may have the body's prefix where names on disk lack it.

    And the reverse: of a model on the hub, how its files spell names is not known before the download.
    """
    layout, whole = Layout.of(model), Layout.whole(model)
    allowed = allowed_tensors(
        layout.shapes,
        lambda: kinds_of(model),
        include=include,
        exclude=exclude,
        density=density,
        key=key,
        others={name: shape for name, shape in whole.shapes.items() if name not in layout.shapes},
        respelled=whole.respelled(),
    )
    return replace(allowed, live=layout.among(allowed.names).live_shapes)


def allowed_by(locate: Locate, model: nn.Module, *, density: float) -> Allowed:
    """Return the tensors whose weights a recipe's `locate` may select."""
    return allowed_in(model, locate.include, locate.exclude, density=density, key="locate.")


def num_entries(shapes: Shapes) -> int:
    """Return the number of weights in all tensors."""
    return sum(math.prod(shape) for shape in shapes.values())


def kinds_of(model: nn.Module) -> dict[str, set[str]]:
    """Return the names on disk of a model's tensors that are `linear` or `embeddings`, and stored as they are."""
    holders: dict[nn.Parameter, list[nn.Module]] = {}
    for module in model.modules():
        for param in module.parameters(recurse=False):
            holders.setdefault(param, []).append(module)
    found: dict[str, set[str]] = {"linear": set(), "embeddings": set()}
    for name, param in model.named_parameters():
        if any(isinstance(module, nn.Embedding) for module in holders[param]):
            found["embeddings"].add(name)
        elif len(holders[param]) == 1 and param.ndim == 2 and _is_linear(holders[param][0]):
            found["linear"].add(name)
    renamed = [group for group in Layout.of(model).groups if group.renames]
    return {
        kind: {name for group in renamed if group.live.keys() <= names for name in group.stored}
        for kind, names in found.items()
    }


def _is_linear(module: nn.Module) -> bool:
    """Return True for a Linear layer that returns one tensor, as an adapter around it expects; some routers return more."""
    if not isinstance(module, nn.Linear):
        return False
    if type(module).forward is nn.Linear.forward:
        return True
    with torch.no_grad():
        return isinstance(module(module.weight.new_zeros(1, module.in_features)), torch.Tensor)


def kinds_unknown() -> Mapping[str, Collection[str]]:
    """Refuse `linear` and `embeddings` if nothing but names is known."""
    raise UserError(
        "linear and embeddings are known by a model's layers: pass `kinds`, or name the tensors by a pattern"
    )


def _named(
    shapes: Shapes, kinds: Kinds, patterns: Sequence[str], respelled: Mapping[str, str], *, key: str
) -> set[str]:
    if isinstance(patterns, str):
        raise UserError(f"{key}: {patterns!r} is one text; give a list of patterns")
    found: set[str] = set()
    for pattern in patterns:
        named = _of_kind(shapes, kinds, pattern) if pattern in KINDS else _matches(shapes, pattern)
        named = named or {respelled[name] for name in _matches(respelled, pattern)}
        if not named:
            raise UserError(
                f"{key}: {pattern!r} names none of the model's {len(shapes)} tensors; {_hint(shapes, pattern)}"
            )
        found |= named
    return found


def _of_kind(shapes: Shapes, kinds: Kinds, kind: str) -> set[str]:
    match kind:
        case "experts":
            return {name for name, shape in shapes.items() if is_of_experts(name, shape)}
        case "vision":
            return {name for name in shapes if _VISION.search(name)}
    return shapes.keys() & kinds()[kind]


def _matches(names: Collection[str], pattern: str) -> set[str]:
    return {name for name in names if fnmatchcase(name, pattern)}


def _hint(names: Collection[str], pattern: str) -> str:
    """Return advice on a pattern without a match: wider patterns, similar names, or an example."""
    if pattern in KINDS:
        return f"{pattern} stands for {KINDS[pattern]}"
    wider = f"*{pattern.strip('*')}*"
    if matched := _matches(names, wider):
        return f"{wider!r} names {len(matched)}, such as {min(matched)}"
    # A large mixture has a hundred thousand names, which differ by numbers alone.
    kinds = {re.sub(r"\d+", "0", name): name for name in reversed(list(names))}
    parts = {part: name for name in kinds.values() for part in name.split(".") if not part.isdecimal()}
    words = sorted(re.findall(r"\w+", pattern), key=len, reverse=True)
    near = [part for word in words for part in difflib.get_close_matches(word, [*KINDS, *parts])]
    if not near:
        example = next(iter(names), "none")
        return f"give {', '.join(KINDS)} or a pattern for whole names such as {example}"
    shown = list(dict.fromkeys(part if part in KINDS else parts[part] for part in near))
    return f"did you mean {shown[0]}{and_more(shown)}?"
