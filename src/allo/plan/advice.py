"""Settings that make a stage fit, each tried in a rehearsal; those that change no result come first."""

import functools
import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from allo.errors import UserError
from allo.plan import plan_stage
from allo.plan.memory import Advised, StagePlan
from allo.recipe import Recipe
from allo.recipe.text import override
from allo.stages.settings import check_settings

Overrides = dict[str, Any]


def advise(recipe: Recipe, planned: StagePlan, *, limit: int) -> Advised:
    """Return the fewest settings, in the order of `_levers`, with which the stage takes at most `limit` bytes.

    Each further lever takes no more memory, so if all of them together do not fit, fewer are not tried.
    """
    if planned.bytes.get("weights", 0) > limit:
        return Advised()
    tried: list[Overrides] = []
    for lever in _levers(recipe, planned.stage):
        more = (tried[-1] if tried else {}) | lever
        if _allowed(recipe, more):
            tried.append(more)
    plans = functools.cache(lambda number: _plan_with(recipe, planned.stage, tried[number]))
    if not tried or plans(len(tried) - 1).total > limit:
        return Advised()
    first = bisect_left(range(len(tried)), True, key=lambda number: plans(number).total <= limit)
    return _with_larger_batch(recipe, planned, Advised(tried[first], plans(first)), limit=limit)


def with_settings(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe | None:
    """Return the recipe with other values at dotted keys; None if it does not allow them."""
    fields = json.loads(recipe.model_dump_json())
    for key, value in settings.items():
        override(fields, f"{key}={json.dumps(value)}")
    try:
        return Recipe.model_validate(fields)
    except ValidationError:
        return None


def _levers(recipe: Recipe, stage: str) -> Iterator[Overrides]:
    """Yield settings that may help, the cheapest first; each is added to those before it."""
    yield _batch(recipe, stage, 1)
    if _trains(recipe, stage):
        yield {f"{stage}.training.activation_checkpointing": True}  # a third more time, the same numbers
    if stage in ("forget", "improve"):
        yield {f"{stage}.reference": "precomputed"}  # the same numbers up to rounding
        yield {f"{stage}.lean": True}
    if stage == "locate":
        for criterion in ("warmup_fused", "gradient"):  # these locate other weights
            if recipe.locate and recipe.locate.criterion != criterion:
                yield {"locate.criterion": criterion}


def _batch(recipe: Recipe, stage: str, size: int) -> Overrides:
    """Return settings for `size` rows at a time; an optimizer step covers as many rows as before."""
    settings: Overrides = {}
    if stage not in ("sft", "locate", "forget", "improve"):
        settings |= {f"{stage}.batch_size": size}
    if not _trains(recipe, stage):
        return settings
    training = getattr(recipe, stage).training
    rows = training.per_device_train_batch_size * training.gradient_accumulation_steps
    settings |= {
        f"{stage}.training.per_device_train_batch_size": size,
        f"{stage}.training.gradient_accumulation_steps": -(-rows // size),
    }
    if getattr(getattr(recipe, stage), "max_tokens_per_batch", None) is not None:
        settings[f"{stage}.max_tokens_per_batch"] = None
    return settings


def _trains(recipe: Recipe, stage: str) -> bool:
    """Return whether the stage trains; scoring does if a scorer reads a model trained for it."""
    if stage == "score":
        return recipe.score is not None and bool(recipe.score.sides)
    return stage in ("sft", "locate", "forget", "improve")


def _size(recipe: Recipe, stage: str) -> int:
    block = getattr(recipe, stage)
    size: int = getattr(block, "batch_size", None) or block.training.per_device_train_batch_size
    return size


def _with_larger_batch(recipe: Recipe, planned: StagePlan, advised: Advised, *, limit: int) -> Advised:
    """Return the advice with the largest batch that fits, halving from the recipe's own."""
    assert advised.plan is not None
    most = _size(recipe, planned.stage)
    a_row = (planned.total - advised.plan.total) / max(most - 1, 1)
    size = most // 2
    while size > 1:
        if _keeps_the_step(recipe, planned.stage, size) and advised.plan.total + (size - 1) * a_row <= limit:
            settings = {**advised.settings, **_batch(recipe, planned.stage, size)}
            if _allowed(recipe, settings):
                found = _plan_with(recipe, planned.stage, settings)
                if found.total <= limit:
                    return Advised(settings, found)
        size //= 2
    return advised


def _keeps_the_step(recipe: Recipe, stage: str, size: int) -> bool:
    """Return whether a step of micro-batches of `size` rows covers as many rows as before."""
    training = getattr(getattr(recipe, stage), "training", None)
    if training is None:
        return True
    rows: int = training.per_device_train_batch_size * training.gradient_accumulation_steps
    return rows % size == 0


def _allowed(recipe: Recipe, settings: Overrides) -> bool:
    """Return whether a run would accept other settings."""
    changed = with_settings(recipe, settings)
    try:
        if changed is not None:
            check_settings(changed)
    except UserError:
        return False
    return changed is not None


def _plan_with(recipe: Recipe, stage: str, settings: Overrides) -> StagePlan:
    """Plan the stage with other settings, which are allowed."""
    changed = with_settings(recipe, settings)
    assert changed is not None
    return plan_stage(changed, stage)
