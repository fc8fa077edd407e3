"""Checks of a recipe's training settings before anything is read; only keys known to transformers alone load its
trainer."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from allo.errors import UserError
from allo.recipe import NEEDS_WARMUP, Locate, Recipe, trains_here
from allo.recipe.criteria import CRITERIA, criterion_of
from allo.recipe.losses import ANSWER_LOSSES
from allo.tokens.scorers import scorers_of
from allo.training.chosen_losses import (
    check_reference_point,
    chosen_feedback_loss,
    chosen_forgetting_loss,
    chosen_pair_loss,
)
from allo.weights.importance import scoring_of


def check_settings(recipe: Recipe) -> None:
    """Raise `UserError` unless all training arguments can be built, and the user's functions exist and are callable."""
    if recipe.improve is not None and recipe.improve.trained_by.config:
        from allo.baselines.arguments import trl_arguments

        trl_arguments(recipe, folder=recipe.run_folder, device=torch.device("cpu"))
    launched = any(name.startswith("ACCELERATE_") for name in os.environ)  # transformers reads settings there
    for stage in ("sft", "locate", "score", "forget", "improve"):
        block = getattr(recipe, stage)
        # The trainers of other libraries read their block themselves.
        if block is None or not trains_here(block) or (block.training.is_plain and not launched):
            continue
        from allo.training.arguments import stage_arguments

        stage_arguments(recipe, stage, folder=recipe.run_folder, device=torch.device("cpu"))
    if recipe.locate is not None:
        check_locate(recipe.locate)
        if recipe.reads_warmup and not criterion_of(recipe.locate.criterion).trains:
            raise UserError(f"locate.criterion: {NEEDS_WARMUP}")
    if recipe.score is not None:
        scorers_of(recipe.score)
    if recipe.forget is not None:
        with _below("forget"):
            chosen_forgetting_loss(recipe.forget.loss)
    if recipe.improve is not None and recipe.improve.loss not in ANSWER_LOSSES:
        own = recipe.improve
        with _below("improve"):
            if recipe.data.feedback is None:
                chosen_pair_loss(own.loss, own.loss_settings, keep=own.keep)
                return
            loss = chosen_feedback_loss(own.loss, own.loss_settings, keep=own.keep)
            check_reference_point(
                loss,
                reference=own.reference,
                rows_a_step=own.training.per_device_train_batch_size
                * own.training.gradient_accumulation_steps,
            )


@contextmanager
def _below(block: str) -> Iterator[None]:
    """Name the block in an error that begins with one of its keys."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{block}.{error}") from error


def check_locate(locate: Locate) -> None:
    """Raise `UserError`, beginning with the key, for settings that the criterion would ignore."""
    criterion = criterion_of(locate.criterion)
    scoring_of(criterion)
    if locate.accumulate != "float32" and not criterion.sums:
        summed = [each.name for each in CRITERIA.values() if each.sums]
        raise UserError(
            f"locate.accumulate: criterion {locate.criterion} accumulates nothing; remove the key, or choose "
            f"one of {', '.join(summed)}."
        )
    if criterion.needs == "warm-up" or not locate.training.model_extra:
        return
    from allo.training.dpo_passes import READ_AT_START, READ_IN_WARMUP

    # Criteria with passes of their own read these arguments; other criteria read none.
    read = READ_IN_WARMUP if criterion.trains else READ_AT_START if criterion.sums else frozenset()
    ignored = (locate.training.model_extra or {}).keys() - read
    if ignored:
        reason = (
            "has an update rule of its own, inside the backward pass,"
            if criterion.trains
            else "trains nothing"
        )
        raise UserError(
            f"locate.training.{min(ignored)}: criterion {locate.criterion} {reason} and would ignore it; "
            "remove the key."
        )
