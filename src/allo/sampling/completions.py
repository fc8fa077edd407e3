"""Completions of prompts, kept batch by batch: what all backends share, and the backend `hf`."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from allo.files.artifacts import ResumableLines, RunFolder
from allo.files.batches import Batches
from allo.files.records import Completion, Prompt
from allo.models.load import Model, Tokenizer, read_config
from allo.models.model_checks import num_positions, prompt_room
from allo.models.start import load_start, read_start
from allo.models.tokenization import cut_left, prompt_ids, turn_end_ids
from allo.recipe import Recipe
from allo.sampling.generate import Batch, generate, num_batches


@dataclass(frozen=True)
class Completed:
    """Completions in the prompts' order; `num_cut` prompts lost their beginning.

    `lines` is the part file; discard it once the completions are written. `counts` holds further figures for the record.
    """

    completions: list[Completion]
    num_cut: int
    lines: Batches | ResumableLines
    counts: dict[str, Any] = field(default_factory=dict)


def complete_by_hf(recipe: Recipe, run: RunFolder, prompts: Sequence[Prompt]) -> Completed:
    """Complete the prompts in this process, through transformers."""
    model, tokenizer = load_start(recipe, run)
    return complete(
        model,
        tokenizer,
        prompts,
        path=run.completions,
        description="sample",
        max_length=recipe.max_length,
        seed=recipe.seed_of_data,
        **recipe.sample.decoding,
    )


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
    """Complete the prompts, each cut to `prompt_room`, from where an earlier process stopped."""
    total = num_batches(len(prompts), num_generations=num_generations, batch_size=batch_size)
    lines = Batches(path, total)
    room = prompt_room(num_positions(model.config), max_length=max_length, max_new_tokens=max_new_tokens)
    whole = [ids_of(tokenizer, prompt) for prompt in prompts]
    ids = [cut_left(tokenizer, prompt, room) for prompt in whole]
    make = partial(
        generate,
        model,
        tokenizer,
        ids,
        max_new_tokens=max_new_tokens,
        num_generations=num_generations,
        batch_size=batch_size,
        turn_ends=turn_ends(tokenizer, prompts),
        **settings,
    )
    record(make, lines, prompts, description=description)
    return read_completed(prompts, lines, num_cut=sum(len(prompt) > room for prompt in whole))


def record(
    make: Callable[..., Iterable[Batch]],
    lines: Batches,
    prompts: Sequence[Prompt],
    *,
    description: str,
) -> None:
    """Write the batches that are left, each as soon as it is there; `make` yields those with given `numbers`."""

    def completed(numbers: Iterator[int]) -> Iterator[tuple[int, list[Completion]]]:
        for batch in make(numbers=numbers):
            yield (
                batch.number,
                [
                    Completion(prompts[s.prompt].id, s.index, s.text, s.finished, s.num_tokens, s.token_ids)
                    for s in batch.samples
                ],
            )

    lines.fill(completed, description)


def read_completed(
    prompts: Sequence[Prompt],
    lines: Batches | ResumableLines,
    *,
    num_cut: int,
    counts: dict[str, Any] | None = None,
) -> Completed:
    """Read the completions back from `lines`, in the prompts' order."""
    place = {prompt.id: number for number, prompt in enumerate(prompts)}
    names = {each.name for each in fields(Completion)}
    rows = itertools.chain.from_iterable(lines.rows()) if isinstance(lines, Batches) else lines.rows()
    completions = [Completion(**{name: row[name] for name in row.keys() & names}) for row in rows]
    return Completed(
        completions=sorted(completions, key=lambda c: (place[c.prompt_id], c.index)),
        num_cut=num_cut,
        lines=lines,
        counts=counts or {},
    )


def ids_of(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """Return the token ids of a prompt, rendered with its template's settings."""
    return prompt_ids(tokenizer, prompt.prompt, template=prompt.template, place=f"prompt {prompt.id}")


def turn_ends(tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> list[int]:
    """Return the ids that end a completion of these prompts beside EOS: the end of a turn if there are messages."""
    has_messages = any(not isinstance(prompt.prompt, str) for prompt in prompts)
    return turn_end_ids(tokenizer) if has_messages else []


def room_at_start(recipe: Recipe, run: RunFolder) -> int:
    """Return the tokens of a prompt by `prompt_room`, from the starting model's configuration alone."""
    config = read_config(read_start(run).model, trust_remote_code=recipe.trust_remote_code)
    return prompt_room(
        num_positions(config), max_length=recipe.max_length, max_new_tokens=recipe.sample.max_new_tokens
    )
