"""Sample completions of the starting model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allo.artifacts import ResumableLines, RunFolder, write_jsonl
from allo.console import track
from allo.errors import UserError
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
    completed = complete(
        model,
        tokenizer,
        prompts,
        path=run.completions,
        description="sample",
        max_length=recipe.max_length,
        seed=recipe.seed_of_data,
        **recipe.sample.model_dump(),
    )
    write_jsonl(run.completions, completed.completions)
    completed.lines.discard()
    return {
        "prompts": len(prompts),
        "prompts_cut": completed.num_cut,
        "completions": len(completed.completions),
        "finished": sum(completion.finished for completion in completed.completions),
    }


@dataclass(frozen=True)
class Completed:
    """Completions in the prompts' order; `num_cut` prompts lost their beginning.

    `lines` is the part file, to be discarded once the completions are written.
    """

    completions: list[Completion]
    num_cut: int
    lines: ResumableLines


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
) -> Completed:
    """Complete the prompts, each cut to `prompt_room`, going on where an earlier process stopped."""
    lines = ResumableLines(path)
    room = prompt_room(num_positions(model), max_length=max_length, max_new_tokens=max_new_tokens)
    whole = [prompt_ids(tokenizer, prompt.prompt) for prompt in prompts]
    ids = [cut_left(tokenizer, prompt, room) for prompt in whole]
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
    return Completed(
        completions=sorted(completions, key=lambda c: (place[c.prompt_id], c.index)),
        num_cut=sum(len(prompt) > room for prompt in whole),
        lines=lines,
    )


def num_positions(model: Model) -> int | None:
    """Of a prompt and its completion together, where the model has a limit."""
    return getattr(model.config, "max_position_embeddings", None)


def prompt_room(positions: int | None, *, max_length: int, max_new_tokens: int) -> int:
    """Tokens of a prompt that is to be completed: `max_length`, or what the model's positions leave.

    Raises `UserError` where they leave nothing.
    """
    if positions is None:
        return max_length
    if max_new_tokens >= positions:
        raise UserError(
            f"max_new_tokens is {max_new_tokens}, but the model has {positions} positions for a prompt and "
            "its completion together: lower max_new_tokens."
        )
    return min(max_length, positions - max_new_tokens)
