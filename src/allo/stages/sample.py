"""The sampling of the starting model's completions, in this process or at servers."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from allo.console import say, track
from allo.errors import UserError
from allo.files.artifacts import ResumableLines, RunFolder, write_jsonl
from allo.files.records import Completion, Prompt
from allo.models.load import Model, Tokenizer, read_config
from allo.models.model_checks import num_positions
from allo.models.start import load_start, load_start_tokenizer, read_start
from allo.models.tokenization import cut_left, prompt_ids, prompt_text, tokenize, turn_end_ids
from allo.recipe import Recipe
from allo.sampling import served
from allo.sampling.endpoint import Endpoint
from allo.sampling.generate import Batch, generate, num_batches
from allo.sampling.replies import Asked, RequestSettings, seed_of
from allo.sampling.vllm_engine import vllm_generate
from allo.tasks.sources import training_prompts


def run(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    prompts = training_prompts(recipe)
    match recipe.sample.backend:
        case "hf":
            model, tokenizer = load_start(recipe, folder)
            completed = complete(
                model,
                tokenizer,
                prompts,
                path=folder.completions,
                description="sample",
                max_length=recipe.max_length,
                seed=recipe.seed_of_data,
                **recipe.sample.decoding,
            )
        case "vllm":
            completed = _complete_by_vllm(recipe, folder, prompts)
        case "openai":
            completed = _complete_at_servers(recipe, folder, prompts)
    write_jsonl(folder.completions, completed.completions)
    completed.lines.discard()
    return {
        "prompts": len(prompts),
        "prompts_cut": completed.num_cut,
        "completions": len(completed.completions),
        "finished": sum(completion.finished for completion in completed.completions),
        **completed.counts,
    }


@dataclass(frozen=True)
class Completed:
    """Completions in the prompts' order; `num_cut` prompts lost their beginning.

    `lines` is the part file, to discard once the completions are written; `counts` holds further counts to report.
    """

    completions: list[Completion]
    num_cut: int
    lines: ResumableLines
    counts: dict[str, Any] = field(default_factory=dict)


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
    """Complete the prompts, each cut to `prompt_room`, resuming where an earlier process stopped."""
    lines = ResumableLines(path)
    room = prompt_room(num_positions(model.config), max_length=max_length, max_new_tokens=max_new_tokens)
    whole = [ids_of(tokenizer, prompt) for prompt in prompts]
    ids = [cut_left(tokenizer, prompt, room) for prompt in whole]
    total = num_batches(len(ids), num_generations=num_generations, batch_size=batch_size)
    batches = generate(
        model,
        tokenizer,
        ids,
        max_new_tokens=max_new_tokens,
        num_generations=num_generations,
        batch_size=batch_size,
        turn_ends=turn_ends(tokenizer, prompts),
        start=len(lines.batches),
        **settings,
    )
    _record(batches, lines, prompts, description=description, total=total)
    return _completed(prompts, lines, num_cut=sum(len(prompt) > room for prompt in whole))


def _record(
    batches: Iterable[Batch],
    lines: ResumableLines,
    prompts: Sequence[Prompt],
    *,
    description: str,
    total: int,
) -> None:
    for batch in track(batches, description, total=total, done=len(lines.batches)):
        lines.append(
            [
                Completion(prompts[s.prompt].id, s.index, s.text, s.finished, s.num_tokens, s.token_ids)
                for s in batch.samples
            ]
        )


def _completed(
    prompts: Sequence[Prompt], lines: ResumableLines, *, num_cut: int, counts: dict[str, Any] | None = None
) -> Completed:
    place = {prompt.id: number for number, prompt in enumerate(prompts)}
    names = {each.name for each in fields(Completion)}
    completions = [Completion(**{name: row[name] for name in row.keys() & names}) for row in lines.rows()]
    return Completed(
        completions=sorted(completions, key=lambda c: (place[c.prompt_id], c.index)),
        num_cut=num_cut,
        lines=lines,
        counts=counts or {},
    )


def ids_of(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """Return the token ids of a prompt, rendered with its template's settings."""
    return prompt_ids(tokenizer, prompt.prompt, template=prompt.template, place=f"prompt {prompt.id}")


def check_servable(prompt: Prompt, length: int, room: int, *, api: str) -> None:
    """Raise `UserError` for a prompt that a chat API cannot take: longer than `room` tokens, or with settings."""
    if isinstance(prompt.prompt, str) or api == "completions":
        return
    if prompt.template:
        raise UserError(
            f"prompt {prompt.id}: `{next(iter(prompt.template))}` is not sent to a server's chat API; set sample.api to "
            "completions, where the prompt is rendered here."
        )
    if length > room:
        raise UserError(
            f"prompt {prompt.id}: its messages have {length} tokens, and {room} leave room for a completion. Set "
            "sample.api to completions, where it loses its beginning, or raise max_length."
        )


def turn_ends(tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> list[int]:
    """Return the ids besides EOS that end these prompts' completions: the end of a turn if there are messages."""
    has_messages = any(not isinstance(prompt.prompt, str) for prompt in prompts)
    return turn_end_ids(tokenizer) if has_messages else []


def _complete_by_vllm(recipe: Recipe, folder: RunFolder, prompts: Sequence[Prompt]) -> Completed:
    tokenizer, room = load_start_tokenizer(recipe, folder), _room_at_start(recipe, folder)
    lines = ResumableLines(folder.completions)
    whole = [ids_of(tokenizer, prompt) for prompt in prompts]
    batches = vllm_generate(
        Path(read_start(folder).model),
        [cut_left(tokenizer, prompt, room) for prompt in whole],
        seeds=[seed_of(recipe.seed_of_data, prompt.id, 0) for prompt in prompts],
        dtype=recipe.dtype,
        max_length=room + recipe.sample.max_new_tokens,
        trust_remote_code=recipe.trust_remote_code,
        turn_ends=turn_ends(tokenizer, prompts),
        start=len(lines.batches),
        **recipe.sample.decoding,
    )
    total = num_batches(
        len(prompts), num_generations=recipe.sample.num_generations, batch_size=recipe.sample.batch_size
    )
    _record(batches, lines, prompts, description="sample", total=total)
    return _completed(prompts, lines, num_cut=sum(len(prompt) > room for prompt in whole))


def _complete_at_servers(recipe: Recipe, folder: RunFolder, prompts: Sequence[Prompt]) -> Completed:
    sample, servers = recipe.sample, recipe.sample.servers
    assert sample.model is not None and servers is not None
    tokenizer, room = load_start_tokenizer(recipe, folder), _room_at_start(recipe, folder)
    model, lines = Path(read_start(folder).model).resolve(), ResumableLines(folder.completions)
    endpoints = [
        Endpoint(
            base_url,
            sample.model,
            key_variable=servers.key_variable,
            concurrency=servers.concurrency,
            timeout=servers.timeout,
            max_retries=servers.max_retries,
        )
        for base_url in servers.base_urls
    ]
    settings = {key: value for key, value in sample.decoding.items() if key != "batch_size"}
    counts = served.complete(
        endpoints,
        [_asked(tokenizer, prompt, room, api=sample.api) for prompt in prompts],
        RequestSettings(**settings, seed=recipe.seed_of_data, extra_body=sample.extra_body),
        lines=lines,
        patience=servers.patience,
        advice=f"Serve {model} as {sample.model!r} there, such as by `vllm serve {model} --served-model-name "
        f"{sample.model}` (docs/sampling.md), and start the run again: it goes on from here.",
        num_tokens=lambda text: len(tokenizer(text, add_special_tokens=False).input_ids),
    )
    if counts["ends_guessed"]:
        say(
            f"sample: of {counts['ends_guessed']} completions the servers do not say whether a string of sample.stop ended them "
            "or the model; all are trained on with the model's own end. vLLM and SGLang say it."
        )
    num_cut = sum(len(ids_of(tokenizer, prompt)) > room for prompt in prompts)
    completed = _completed(prompts, lines, num_cut=num_cut, counts=counts)
    stops = {(row["prompt_id"], row["index"]): row.get("stop") for row in lines.rows()}
    by_id = {prompt.id: prompt for prompt in prompts}
    ended = [
        replace(
            one, token_ids=_ids_to(tokenizer, by_id[one.prompt_id], one.text, stops[one.prompt_id, one.index])
        )
        for one in completed.completions
    ]
    return replace(completed, completions=ended)


def _ids_to(tokenizer: Tokenizer, prompt: Prompt, text: str, stop: str | int | None) -> list[int] | None:
    """Return a server's completion as ids, up to the stop string or token; None if the model ended it."""
    if stop is None or (isinstance(stop, int) and not 0 <= stop < len(tokenizer)):
        return None
    is_token = isinstance(stop, int)
    found = tokenize(
        tokenizer,
        prompt.prompt,
        text if is_token else f"{text}{stop}",
        finished=False,
        max_length=sys.maxsize,
        template=prompt.template,
        place=f"prompt {prompt.id}",
    )
    return [*(found.completion_ids if found else []), *([stop] if isinstance(stop, int) else [])]


def _asked(tokenizer: Tokenizer, prompt: Prompt, room: int, *, api: str) -> Asked:
    """Return a prompt for servers. Raises `UserError` for messages that are too long, which cannot be cut."""
    length = len(ids_of(tokenizer, prompt))
    if isinstance(prompt.prompt, str) or api == "completions":
        text = prompt_text(
            tokenizer, prompt.prompt, room, template=prompt.template, place=f"prompt {prompt.id}"
        )
        return Asked(prompt.id, text, min(length, room))
    check_servable(prompt, length, room, api=api)
    return Asked(prompt.id, prompt.prompt, length)


def _room_at_start(recipe: Recipe, folder: RunFolder) -> int:
    """Return the most tokens of a prompt, from the starting model's configuration alone."""
    config = read_config(read_start(folder).model, trust_remote_code=recipe.trust_remote_code)
    return prompt_room(
        num_positions(config), max_length=recipe.max_length, max_new_tokens=recipe.sample.max_new_tokens
    )


def prompt_room(positions: int | None, *, max_length: int, max_new_tokens: int) -> int:
    """Return the most tokens of a prompt to complete: `max_length`, or what the model's positions leave.

    Raises `UserError` if they leave nothing.
    """
    if positions is None:
        return max_length
    if max_new_tokens >= positions:
        raise UserError(
            f"max_new_tokens is {max_new_tokens}, but the model has {positions} positions for a prompt and "
            "its completion together: lower max_new_tokens."
        )
    return min(max_length, positions - max_new_tokens)
