"""Find bad input before a run's first stage costs time."""

from collections.abc import Iterator
from typing import Any

import torch

from allo.hf.models import load_tokenizer
from allo.hf.training import training_arguments
from allo.prompts import read_pairs, read_prompts
from allo.recipe import Recipe, Source
from allo.sources import prompt_source
from allo.stages.judge import check_judgeable


def check(recipe: Recipe) -> None:
    """Read every source of prompts and the tokenizer, and build each stage's training arguments.

    Raises `UserError` for the first that is bad.
    """
    for key, training in _training_blocks(recipe):
        training_arguments(
            training, folder=recipe.run_folder, seed=recipe.seed, device=torch.device("cpu"), key=key
        )
    load_tokenizer(recipe.model, pad_token=recipe.pad_token, trust_remote_code=recipe.trust_remote_code)
    judged: list[Source] = list(recipe.evaluate.sets.values())
    if recipe.data.pairs is None:
        judged.insert(0, recipe.data)
    else:
        read_pairs(recipe.data.pairs)
    for source in judged:
        for prompt in read_prompts(prompt_source(recipe, source)):
            check_judgeable(prompt, verifier=recipe.judge.verifier)
    for source in [*(recipe.sft.sources if recipe.sft else []), *filter(None, [recipe.evaluate.kl])]:
        read_prompts(prompt_source(recipe, source))


def _training_blocks(recipe: Recipe) -> Iterator[tuple[str, dict[str, Any]]]:
    """The recipe's `training` blocks under their keys."""
    for name in ("sft", "locate", "forget", "improve"):
        block = getattr(recipe, name)
        if block is not None:
            yield f"{name}.training", block.training.model_dump()
