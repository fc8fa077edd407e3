"""Settings that make a stage fit, each tried in a rehearsal; those that change no result come first."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from allo.errors import UserError
from allo.plan import plan_stage
from allo.plan.memory import Advised, StagePlan
from allo.recipe import Recipe
from allo.recipe.text import override
from allo.stages.settings import check_locate

Overrides = dict[str, Any]


def advise(recipe: Recipe, planned: StagePlan, *, limit: int) -> Advised:
    """Return the first settings, in the order of `_levers`, with which the stage takes at most `limit` bytes."""
    settings: Overrides = {}
    for lever in _levers(recipe, planned.stage):
        found = _plan_with(recipe, planned.stage, settings | lever)
        if found is None:
            continue
        settings |= lever
        if found.total <= limit:
            return _with_larger_batch(recipe, planned, Advised(settings, found), limit=limit)
    return Advised()


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
        # These locate other weights.
        yield {"locate.criterion": "warmup_fused"}
        yield {"locate.criterion": "gradient"}


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
            found = _plan_with(recipe, planned.stage, settings)
            if found is not None and found.total <= limit:
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


def _plan_with(recipe: Recipe, stage: str, settings: Overrides) -> StagePlan | None:
    """Plan the stage with other settings; None if a run would refuse them."""
    changed = with_settings(recipe, settings)
    if changed is None:
        return None
    try:
        if changed.locate:
            check_locate(changed.locate)
        return plan_stage(changed, stage)
    except UserError:
        return None
