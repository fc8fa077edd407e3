"""The backend `openai`: a run's prompts as servers read them, and their replies as completions."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from allo.console import say
from allo.errors import UserError
from allo.files.artifacts import ResumableLines, RunFolder
from allo.files.records import Prompt
from allo.models.load import Tokenizer
from allo.models.start import load_start_tokenizer, read_start
from allo.models.tokenization import bare_ids, prompt_text, tokenize
from allo.recipe import Recipe
from allo.recipe.sample import Servers
from allo.sampling import served
from allo.sampling.completions import Completed, ids_of, read_completed, room_at_start
from allo.sampling.endpoint import Endpoint, require_openai
from allo.sampling.own_server import server_command, serving
from allo.sampling.replies import Asked, RequestSettings


def check_servers(recipe: Recipe) -> None:
    """Raise `UserError` without the `openai` package, or the command of a server that the run starts.

    Servers are asked later: the starting model comes first.
    """
    require_openai()
    if recipe.sample.serve:
        server_command(recipe.sample.serve)


def complete_at_servers(recipe: Recipe, run: RunFolder, prompts: Sequence[Prompt]) -> Completed:
    """Complete the prompts at the recipe's servers, from where an earlier process stopped."""
    sample = recipe.sample
    if not sample.serve:
        assert sample.servers is not None
        return _complete(recipe, run, prompts, sample.servers)
    model, log = Path(read_start(run).model).resolve(), run.path / "01-server.log"
    with serving(sample.serve, model=model, name=sample.served_name, log=log) as address:
        return _complete(recipe, run, prompts, Servers(base_urls=[address]))


def _complete(recipe: Recipe, run: RunFolder, prompts: Sequence[Prompt], servers: Servers) -> Completed:
    sample = recipe.sample
    tokenizer, room = load_start_tokenizer(recipe, run), room_at_start(recipe, run)
    folder, lines = Path(read_start(run).model).resolve(), ResumableLines(run.completions)
    endpoints = [
        Endpoint(
            base_url,
            sample.served_name,
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
        advice=f"Serve {folder} as {sample.served_name!r} there, such as by `vllm serve {folder} --served-model-name "
        f"{sample.served_name}` (docs/sampling.md), and start the run again: it goes on from here.",
        num_tokens=lambda text: len(bare_ids(tokenizer, text, place="a reply")),
    )
    if counts["ends_guessed"]:
        say(
            f"sample: of {counts['ends_guessed']} completions the servers do not say whether a string of sample.stop ended them "
            "or the model; all are trained on with the model's own end. vLLM and SGLang say it."
        )
    num_cut = sum(len(ids_of(tokenizer, prompt)) > room for prompt in prompts)
    completed = read_completed(prompts, lines, num_cut=num_cut, counts=counts)
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
    """Return the ids of a server's completion up to the stop string or token that ended it; None for the model's own end."""
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
    """Return a prompt as servers read it. Raises `UserError` for messages that are too long, as these cannot be cut."""
    length = len(ids_of(tokenizer, prompt))
    if isinstance(prompt.prompt, str) or api == "completions":
        text = prompt_text(
            tokenizer, prompt.prompt, room, template=prompt.template, place=f"prompt {prompt.id}"
        )
        return Asked(prompt.id, text, min(length, room))
    check_servable(prompt, length, room, api=api)
    return Asked(prompt.id, prompt.prompt, length)


def check_servable(prompt: Prompt, length: int, room: int, *, api: str) -> None:
    """Refuse a prompt that a server's chat API cannot take: one of more tokens than `room`, or with settings.

    Raises `UserError`.
    """
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
