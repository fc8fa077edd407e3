"""The making of the starting model: fine-tuned on demonstrations if the recipe says so."""

from typing import Any

from allo.console import say
from allo.errors import UserError
from allo.files.artifacts import RunFolder, write_jsonl
from allo.models.load import MODEL_FILES, Model, Tokenizer, locate_checkpoint
from allo.models.start import give_date, is_ready, load_policy, load_policy_tokenizer, save_whole, write_start
from allo.ranks import by_first, from_first, rank
from allo.recipe import Recipe, Sft
from allo.stages.right_answers import demonstrations
from allo.tasks.sources import prompts_of
from allo.training.arguments import stage_arguments
from allo.training.checkpointing import save_shards
from allo.training.run import remove_checkpoints, train
from allo.training.trainer import SftTrainer
from allo.weights.layout import Layout
from allo.weights.own_pieces import full_mask


def run(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Write `00-sft/start.json`, and `00-sft/model` unless the recipe's model can be used directly."""
    return _started(recipe, folder) if recipe.sft is not None else by_first(lambda: _started(recipe, folder))


def _why_copied(recipe: Recipe) -> str:
    """Return why a run cannot start from the recipe's model as it is stored."""
    if locate_checkpoint(recipe.model, MODEL_FILES)[1] is not None:
        return "is a GGUF file, which is converted"
    return f"is not stored as this run stores its model, in {recipe.dtype} and under the names that transformers gives"


def _started(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    folder.start.mkdir(exist_ok=True)
    ready = is_ready(recipe) if recipe.sft is None or recipe.shards is not None else None
    if recipe.shards is not None and ready is None:
        raise UserError(
            f"shards: {recipe.model} {_why_copied(recipe)}, and no process holds it as a whole: convert it first, or set dtype to "
            "the one on disk."
        )
    model_folder = ready if recipe.sft is None else None
    counts: dict[str, Any] = {}
    tokenizer = load_policy_tokenizer(recipe, recipe.model)
    from_first(lambda: give_date(tokenizer, folder))
    day = give_date(tokenizer, folder)
    if model_folder is None:
        model_folder = folder.start / "model"
        model = load_policy(recipe, recipe.model)
        if recipe.sft is None:
            say(
                f"nothing is fine-tuned: {recipe.model} {_why_copied(recipe)}: the run starts from the copy {model_folder}, and "
                "its masks and deltas are for that copy"
            )
        else:
            counts = _fine_tune(recipe, recipe.sft, model, tokenizer, folder)
        if recipe.shards is not None:
            save_shards(model, model_folder)
        if rank():
            return {}
        if recipe.shards is None:
            save_whole(model, tokenizer, model_folder)
    write_start(folder, model_folder, day=day)
    remove_checkpoints(folder.start)
    return counts


def _fine_tune(
    recipe: Recipe, sft: Sft, model: Model, tokenizer: Tokenizer, folder: RunFolder
) -> dict[str, Any]:
    """Train all weights on the sources' solutions, with fp32 masters."""
    prompts = [prompt for source in sft.sources for prompt in prompts_of(recipe, source)]
    trainer = SftTrainer(
        model,
        stage_arguments(recipe, "sft", folder=folder.start, device=model.device),
        demonstrations(prompts),
        tokenizer,
        mask=full_mask(Layout.of(model), among=Layout.of(model).shapes),
        records=True,
        max_length=recipe.max_length,
    )
    rows = train(trainer)
    if rank() == 0:
        write_jsonl(folder.start / "metrics.jsonl", rows)
    trainer.selected.release()
    return {"demonstrations": len(trainer.train_dataset), "dropped": trainer.num_dropped}
