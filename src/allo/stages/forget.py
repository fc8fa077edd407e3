"""Make the model forget the wrong tokens of wrong completions (method.md 1.2)."""

from typing import Any

import pyarrow.parquet as pq

from allo.files.artifacts import RunFolder, read_jsonl
from allo.files.records import Wrong
from allo.models.start import load_start
from allo.recipe import Recipe
from allo.training.arguments import stage_arguments
from allo.training.result import located_mask, train_stage
from allo.training.trainer import ForgetTrainer


def run(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Write `06-forget`: train the located weights by the forgetting loss."""
    assert recipe.forget is not None
    model, tokenizer = load_start(recipe, folder)
    mask = located_mask(recipe, folder, model, density=recipe.forget.density, folder=folder.forget)
    trainer = ForgetTrainer(
        model,
        stage_arguments(recipe, "forget", folder=folder.forget, device=model.device),
        _rows(folder),
        tokenizer,
        mask=mask,
        records=True,
        beta=recipe.forget.beta,
        loss=recipe.forget.loss,
        until=recipe.forget.until,
        max_tokens_per_batch=recipe.forget.max_tokens_per_batch,
        group=recipe.forget.group,
        reference=recipe.forget.reference,
        lean=recipe.forget.lean,
        max_length=recipe.max_length,
    )
    return train_stage(trainer, folder, folder.forget, mask, before=())


def _rows(folder: RunFolder) -> list[dict[str, Any]]:
    """Return the wrong completions with the ids that were scored and their weights."""
    table = pq.read_table(folder.token_scores, columns=["id", "token_ids", "weights"])
    scored = {row["id"]: row for row in table.to_pylist()}
    return [
        {
            "prompt": wrong.prompt,
            "template": wrong.template,
            "message": wrong.message,
            "completion": wrong.completion,
            "finished": wrong.finished,
            "completion_ids": scored[wrong.id]["token_ids"],
            "token_weights": scored[wrong.id]["weights"],
        }
        for wrong in read_jsonl(folder.wrong, Wrong)
        if wrong.id in scored
    ]
