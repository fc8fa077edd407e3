"""Make the model learn from preference pairs, noisy rejected tokens filtered out (method.md 1.3)."""

from typing import Any

from allo.files.artifacts import RunFolder, read_jsonl
from allo.files.records import Pair
from allo.models.load import Model, Tokenizer
from allo.models.start import load_start
from allo.recipe import Improve, Recipe
from allo.recipe.losses import SUPERVISED
from allo.stages.compared import train_adapter, train_on_policy
from allo.stages.right_answers import gold_solutions, right_samples
from allo.stages.settings import named_loss
from allo.training.arguments import training_arguments
from allo.training.result import located_mask, take_over, train_stage
from allo.training.selected_trainer import SelectedTrainer
from allo.training.trainer import ImproveTrainer, SftTrainer
from allo.weights.param_mask import ParamMask


def run(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Write `07-improve` by the recipe's trainer."""
    assert recipe.improve is not None
    match recipe.improve.trainer:
        case "selected":
            return train_selected(recipe, folder)
        case "lora" | "shira" as kind:
            return train_adapter(recipe, folder, kind)
        case "rloo" | "grpo" as kind:
            return train_on_policy(recipe, folder, kind)


def train_selected(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Write `07-improve`: filtered DPO from the start, or from what forgetting left, which is also its reference."""
    assert recipe.improve is not None
    model, tokenizer = load_start(recipe, folder)
    mask = located_mask(recipe, folder, model, density=recipe.improve.density)
    before = take_over(recipe, folder, model, stage="improve")
    trainer = _trainer(recipe, recipe.improve, folder, model, tokenizer, mask)
    return train_stage(trainer, folder, folder.improve, mask, before=before)


def _trainer(
    recipe: Recipe, improve: Improve, folder: RunFolder, model: Model, tokenizer: Tokenizer, mask: ParamMask
) -> SelectedTrainer:
    """What learns the recipe's loss under the mask."""
    arguments = training_arguments(
        improve.training.model_dump(),
        folder=folder.improve,
        seed=recipe.seed,
        device=model.device,
        key="improve.training",
    )
    if improve.loss in SUPERVISED:
        rows = gold_solutions(recipe, folder) if improve.loss == "sft" else right_samples(recipe, folder)
        return SftTrainer(
            model,
            arguments,
            rows,
            tokenizer,
            mask=mask,
            records=True,
            max_tokens_per_batch=improve.max_tokens_per_batch,
            lean=improve.lean,
            max_length=recipe.max_length,
        )
    return ImproveTrainer(
        model,
        arguments,
        [vars(pair) for pair in read_jsonl(folder.pairs, Pair)],
        tokenizer,
        mask=mask,
        records=True,
        beta=improve.beta,
        keep=improve.keep,
        loss=named_loss(improve),
        loss_settings=improve.loss_settings,
        anchor=improve.anchor,
        filter=improve.filter,
        shared_prefix=improve.shared_prefix,
        max_tokens_per_batch=improve.max_tokens_per_batch,
        reference=improve.reference,
        lean=improve.lean,
        max_length=recipe.max_length,
    )
