"""Make the model learn from pairs or labelled completions, noisy bad tokens filtered out (method.md 1.3)."""

from collections.abc import Callable
from typing import Any

from allo.files.artifacts import RunFolder, read_jsonl
from allo.files.records import Feedback, Pair
from allo.models.load import Model, Tokenizer
from allo.ranks import by_first
from allo.recipe import Improve, Recipe
from allo.recipe.losses import ANSWER_LOSSES
from allo.recipe.own_code import function_of
from allo.training.arguments import stage_arguments
from allo.training.feedback_trainer import FeedbackTrainer
from allo.training.result import load_start_of_improving, located_mask, train_stage
from allo.training.selected_trainer import SelectedTrainer
from allo.training.trainer import ImproveTrainer, SftTrainer
from allo.training.trainer_options import Options
from allo.weights.param_mask import ParamMask


def run(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Write `07-improve` by the recipe's trainer. Ranks share ours; rank 0 alone trains by those of other libraries."""
    assert recipe.improve is not None
    by = recipe.improve.trained_by
    train: Callable[[Recipe, RunFolder], dict[str, Any]] = function_of(by.function, key="improve.trainer")
    return train(recipe, folder) if by.selects else by_first(lambda: train(recipe, folder))


def train_selected(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Write `07-improve`: train the located weights by `improve.loss`, from the start or from what forgetting left.

    The model that training begins from is the reference, too.
    """
    assert recipe.improve is not None
    model, tokenizer, before = load_start_of_improving(recipe, folder)
    mask = located_mask(recipe, folder, model, density=recipe.improve.density, folder=folder.improve)
    trainer = _trainer(recipe, recipe.improve, folder, model, tokenizer, mask)
    return train_stage(trainer, folder, folder.improve, mask, before=before)


def _trainer(
    recipe: Recipe, improve: Improve, folder: RunFolder, model: Model, tokenizer: Tokenizer, mask: ParamMask
) -> SelectedTrainer:
    """Return the trainer that learns the recipe's loss under the mask."""
    arguments = stage_arguments(recipe, "improve", folder=folder.improve, device=model.device)
    shared: Options = {
        "mask": mask,
        "records": True,
        "max_tokens_per_batch": improve.max_tokens_per_batch,
        "group": improve.group,
        "lean": improve.lean,
        "max_length": recipe.max_length,
    }
    if improve.loss in ANSWER_LOSSES:
        rows = function_of(ANSWER_LOSSES[improve.loss].function, key="improve.loss")(recipe, folder)
        return SftTrainer(model, arguments, rows, tokenizer, **shared)
    shared["reference"] = improve.reference
    if recipe.data.feedback is not None:
        return FeedbackTrainer(
            model,
            arguments,
            [vars(row) for row in read_jsonl(folder.feedback, Feedback)],
            tokenizer,
            beta=improve.beta,
            keep=improve.keep,
            loss=improve.loss,
            loss_settings=improve.loss_settings,
            filter=improve.filter,
            **shared,
        )
    return ImproveTrainer(
        model,
        arguments,
        [vars(pair) for pair in read_jsonl(folder.pairs, Pair)],
        tokenizer,
        beta=improve.beta,
        keep=improve.keep,
        loss=improve.loss,
        loss_settings=improve.loss_settings,
        anchor=improve.anchor,
        filter=improve.filter,
        shared_prefix=improve.shared_prefix,
        **shared,
    )
