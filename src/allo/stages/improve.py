"""Make the model learn from preference pairs, noisy rejected tokens filtered out (method.md 1.3)."""

from typing import Any

from allo.artifacts import RunFolder, read_jsonl
from allo.hf.arguments import training_arguments
from allo.hf.result import apply_delta, located_mask, train_stage
from allo.hf.start import load_start
from allo.hf.trainer import ImproveTrainer
from allo.recipe import Recipe
from allo.records import Pair
from allo.stages.compared import train_adapter, train_on_policy


def run(recipe: Recipe, run: RunFolder) -> dict[str, Any]:
    """Write `07-improve` by the recipe's trainer."""
    assert recipe.improve is not None
    match recipe.improve.trainer:
        case "selected":
            return train_selected(recipe, run)
        case "lora" | "shira" as kind:
            return train_adapter(recipe, run, kind)
        case "rloo" | "grpo" as kind:
            return train_on_policy(recipe, run, kind)


def train_selected(recipe: Recipe, run: RunFolder) -> dict[str, Any]:
    """Write `07-improve`: filtered DPO from the model after forgetting, which is also its reference."""
    assert recipe.improve is not None
    model, tokenizer = load_start(recipe, run)
    mask = located_mask(recipe, run, model, density=recipe.improve.density)
    before = apply_delta(model, run.forget).indices if recipe.forget else {}
    trainer = ImproveTrainer(
        model,
        training_arguments(
            recipe.improve.training.model_dump(),
            folder=run.improve,
            seed=recipe.seed,
            device=model.device,
            key="improve.training",
        ),
        [vars(pair) for pair in read_jsonl(run.pairs, Pair)],
        tokenizer,
        mask=mask,
        beta=recipe.improve.beta,
        keep=recipe.improve.keep,
        label_smoothing=recipe.improve.label_smoothing,
        shared_prefix=recipe.improve.shared_prefix,
        max_tokens_per_batch=recipe.improve.max_tokens_per_batch,
        reference=recipe.improve.reference,
        lean=recipe.improve.lean,
        max_length=recipe.max_length,
    )
    return train_stage(trainer, run, run.improve, mask, before=before)
