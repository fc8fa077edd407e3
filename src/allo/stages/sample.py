"""Sample completions of the starting model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from allo.artifacts import ResumableLines, RunFolder, write_jsonl
from allo.console import track
from allo.hf.generate import generate, num_batches
from allo.hf.models import Model, Tokenizer
from allo.hf.start import load_start
from allo.hf.tokenization import cut_left, prompt_ids
from allo.recipe import Recipe
from allo.records import Completion, Prompt
from allo.sources import training_prompts


def run(recipe: Recipe, run: RunFolder) -> dict[str, Any]:
    prompts = training_prompts(recipe)
    model, tokenizer = load_start(recipe, run)
    completions, lines = complete(
        model,
        tokenizer,
        prompts,
        path=run.completions,
        description="sample",
        max_length=recipe.max_length,
        seed=recipe.seed,
        **recipe.sample.model_dump(),
    )
    write_jsonl(run.completions, completions)
    lines.discard()
    finished = sum(completion.finished for completion in completions)
    return {"prompts": len(prompts), "completions": len(completions), "finished": finished}


def complete(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    path: Path,
    description: str,
    max_length: int,
    max_new_tokens: int,
    num_generations: int,
    batch_size: int,
    **settings: Any,
) -> tuple[list[Completion], ResumableLines]:
    """Completions in the prompts' order, going on where an earlier process stopped.

    The caller writes the result, then discards the part file.
    """
    lines = ResumableLines(path)
    room = max(1, max_length - max_new_tokens)
    ids = [cut_left(tokenizer, prompt_ids(tokenizer, prompt.prompt), room) for prompt in prompts]
    total = num_batches(len(ids), num_generations=num_generations, batch_size=batch_size)
    batches = generate(
        model,
        tokenizer,
        ids,
        max_new_tokens=max_new_tokens,
        num_generations=num_generations,
        batch_size=batch_size,
        start=len(lines.batches),
        **settings,
    )
    for batch in track(batches, description, total=total, done=len(lines.batches)):
        lines.append(
            [
                Completion(prompts[s.prompt].id, s.index, s.text, s.finished, s.num_tokens)
                for s in batch.samples
            ]
        )
    place = {prompt.id: number for number, prompt in enumerate(prompts)}
    completions = [Completion(**row) for row in lines.rows()]
    return sorted(completions, key=lambda c: (place[c.prompt_id], c.index)), lines
