"""Plans of deep models, from rehearsals of two shallow ones: layers that are alike take the same memory each."""

import functools
import json
import tempfile
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from allo.models.load import empty_model
from allo.models.rehearsal import config_of
from allo.plan.memory import StagePlan
from allo.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FEW = 2
"""Layers of the shallower model; the other has one more."""
DEEP = 24
"""The fewest layers that are worth it. In models of few layers another moment than the deep model's may be the peak."""
_PEAK = "peak"  # beside the moments' keys
_SAME_CLASS = (bool, int, float, str, type(None), tuple)


def planned_by_layer(plan: Callable[[Recipe], StagePlan], recipe: Recipe) -> StagePlan:
    """Plan with two shallow models, and add the difference once for each further layer, at each moment of a stage.

    A model whose layers differ, one of code from the hub, and one whose tensors are named in the recipe are planned as
    they are.
    """
    layers = None if recipe.trust_remote_code or _names_tensors(recipe) else _layers_alike(recipe.model)
    if layers is None or layers < DEEP:
        return plan(recipe)
    config = config_of(recipe.model, recipe.trust_remote_code)
    with _shallow(config, FEW) as few, _shallow(config, FEW + 1) as one_more:
        first, second = (plan(recipe.model_copy(update={"model": str(folder)})) for folder in (few, one_more))
    further = layers - FEW - 1

    def at_depth(fewer: int, more: int) -> int:
        return more + further * (more - fewer)

    pairs: dict[Hashable, tuple[Mapping[str, int], Mapping[str, int]]] = {
        key: (first.moments[key], second.moments[key]) for key in first.moments.keys() & second.moments
    }
    deep = {
        key: {kind: at_depth(fewer.get(kind, 0), more.get(kind, 0)) for kind in {**fewer, **more}}
        for key, (fewer, more) in {_PEAK: (first.bytes, second.bytes), **pairs}.items()
    }
    taken = max(deep.values(), key=lambda bytes: sum(bytes.values()))  # the first one of several
    step = second.step
    if step is not None and first.step is not None:
        selected, trained, copy = (
            at_depth(getattr(first.step, name), getattr(step, name))
            for name in ("selected", "trained", "sent_copy")
        )
        step = replace(step, selected=selected, trained=trained, sent_copy=copy)
    return replace(second, bytes=taken, host=at_depth(first.host, second.host), moments=deep, step=step)


def _names_tensors(recipe: Recipe) -> bool:
    return recipe.locate is not None and bool(recipe.locate.include or recipe.locate.exclude)


@functools.cache
def _layers_alike(ref: str) -> int | None:
    """Return the number of a model's layers if all are alike and a configuration says how many; otherwise None."""
    config = config_of(ref, False)
    number = getattr(config, "num_hidden_layers", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    stacks = [
        module
        for module in empty_model(config).modules()
        if isinstance(module, nn.ModuleList) and len(module) == number
    ]
    if number is None or len(kinds) > 1 or len(stacks) != 1:
        return None
    first, *others = map(_description, stacks[0])
    return number if all(other == first for other in others) else None


def _description(layer: nn.Module) -> list[Any]:
    """Describe a layer by its modules, their tensors' shapes and their settings, apart from its number."""
    return [
        (
            name,
            type(module),
            [(key, param.shape) for key, param in module.named_parameters(recurse=False)],
            [
                (key, value)
                for key, value in vars(module).items()
                if isinstance(value, _SAME_CLASS) and key != "layer_idx"
            ],
        )
        for name, module in layer.named_modules()
    ]


@contextmanager
def _shallow(config: "PretrainedConfig", layers: int) -> Iterator[Path]:
    """Yield a folder with the configuration of a model of few layers."""
    fields: Mapping[str, Any] = config.to_dict()
    changed = {"num_hidden_layers": layers}
    if fields.get("layer_types"):
        changed["layer_types"] = fields["layer_types"][:layers]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps({**fields, **changed}))
        yield Path(folder)
