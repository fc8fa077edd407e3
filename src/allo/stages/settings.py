"""Checks of a recipe's training settings before anything is read; only keys known to transformers alone load its
trainer."""

import os
from collections.abc import Iterator

import torch

from allo.errors import UserError
from allo.losses.pair_losses import PairLoss, chosen_loss
from allo.recipe import NEEDS_WARMUP, Improve, Locate, Recipe, Steps
from allo.recipe.criteria import CRITERIA, criterion_of
from allo.recipe.losses import SUPERVISED
from allo.recipe.own_code import load_function, own_file
from allo.recipe.training import Training
from allo.tokens.scorers import scorers_of
from allo.weights.importance import scoring_of


def check_settings(recipe: Recipe) -> None:
    """Raise `UserError` unless all training arguments can be built, and the user's functions exist and are callable."""
    if recipe.improve is not None and recipe.improve.trainer != "selected":
        from allo.baselines.arguments import trl_arguments

        trl_arguments(recipe, folder=recipe.run_folder, device=torch.device("cpu"))
    launched = any(name.startswith("ACCELERATE_") for name in os.environ)  # transformers reads settings there
    for key, training, lean in _training_blocks(recipe):
        if training.is_plain and not launched:
            continue
        from allo.training.arguments import training_arguments

        training_arguments(
            training.model_dump(),
            folder=recipe.run_folder,
            seed=recipe.seed,
            device=torch.device("cpu"),
            key=key,
            lean=lean,
        )
    if recipe.locate is not None:
        check_locate(recipe.locate)
        if recipe.reads_warmup and not criterion_of(recipe.locate.criterion).trains:
            raise UserError(f"locate.criterion: {NEEDS_WARMUP}")
    if recipe.score is not None:
        scorers_of(recipe.score)
    if recipe.improve is not None and recipe.improve.loss not in SUPERVISED:
        try:
            chosen_loss(named_loss(recipe.improve), recipe.improve.loss_settings, keep=recipe.improve.keep)
        except UserError as error:
            raise UserError(f"improve.{error}") from error


def named_loss(improve: Improve) -> str | PairLoss:
    """Return the recipe's pair loss: its name, or the user's own function."""
    return load_function(improve.loss, key="loss") if own_file(improve.loss) else improve.loss


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


def _training_blocks(recipe: Recipe) -> Iterator[tuple[str, Training, bool]]:
    """Yield the recipe's own `training` blocks, not TRL's, with their keys and whether they are lean."""
    for name in ("sft", "locate", "score", "forget", "improve"):
        block = getattr(recipe, name)
        if block is not None and getattr(block, "trainer", "selected") == "selected":
            yield f"{name}.training", block.training, isinstance(block, Steps) and block.lean
