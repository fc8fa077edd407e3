"""The backend `vllm`: completions sampled in this process from the same token ids and settings, with vLLM's kernels.

It is written against vLLM's documented call forms (`LLM`, `SamplingParams`, `RequestOutput`).
"""

import gc
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from allo.errors import UserError
from allo.files.artifacts import RunFolder
from allo.files.batches import Batches
from allo.files.records import Prompt
from allo.models.start import is_ready, load_start_tokenizer, read_start
from allo.models.tokenization import cut_left
from allo.recipe import Recipe
from allo.sampling.completions import Completed, ids_of, read_completed, record, room_at_start, turn_ends
from allo.sampling.generate import Batch, Generated, num_batches, prompts_per_batch
from allo.sampling.replies import seed_of
from allo.weights.checkpoints import SUFFIX, weight_files


def check_vllm(recipe: Recipe) -> None:
    """Raise `UserError` without the `vllm` package, or if vLLM could read other weights than allo does."""
    require_vllm()
    local = recipe.sft is None and Path(recipe.model).expanduser().is_dir()
    if local and (start := is_ready(recipe)):
        refuse_other_weights(start)


def complete_by_vllm(recipe: Recipe, run: RunFolder, prompts: Sequence[Prompt]) -> Completed:
    """Complete the prompts in this process, through vLLM."""
    tokenizer, room = load_start_tokenizer(recipe, run), room_at_start(recipe, run)
    total = num_batches(
        len(prompts), num_generations=recipe.sample.num_generations, batch_size=recipe.sample.batch_size
    )
    lines = Batches(run.completions, total)
    whole = [ids_of(tokenizer, prompt) for prompt in prompts]
    make = partial(
        vllm_generate,
        Path(read_start(run).model),
        [cut_left(tokenizer, prompt, room) for prompt in whole],
        seeds=[seed_of(recipe.seed_of_data, prompt.id, 0) for prompt in prompts],
        dtype=recipe.dtype,
        max_length=room + recipe.sample.max_new_tokens,
        trust_remote_code=recipe.trust_remote_code,
        turn_ends=turn_ends(tokenizer, prompts),
        **recipe.sample.decoding,
    )
    record(make, lines, prompts, description="sample")
    return read_completed(prompts, lines, num_cut=sum(len(prompt) > room for prompt in whole))


def vllm_generate(
    folder: Path,
    prompts: list[list[int]],
    *,
    seeds: Sequence[int],
    num_generations: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    stop: list[str],
    batch_size: int,
    dtype: str,
    max_length: int,
    trust_remote_code: bool,
    numbers: Iterable[int],
    turn_ends: Sequence[int] = (),
) -> Iterator[Batch]:
    """Yield completions batch by batch, in the prompts' order: the batches with these `numbers`.

    A batch has as many prompts as one of `generate`; vLLM decides what it decodes together. Completion i of a prompt is
    drawn with the prompt's seed plus i. The engine's memory is freed at the end.

    Args:
        prompts: each prompt's token ids, at least one.
        seeds: one for each prompt.
        max_length: tokens of a prompt and its completion together.
        turn_ends: further ids that end a completion; vLLM reads the others from the checkpoint.

    Raises:
        UserError: without the `vllm` package, and for a model that vLLM does not load.
    """
    engine = _engine(
        folder, dtype=dtype, max_model_len=max_length, trust_remote_code=trust_remote_code, seed=seeds[0]
    )
    from vllm import SamplingParams

    sampling = {
        "n": num_generations,
        "temperature": temperature,
        "top_p": top_p,
        "max_tokens": max_new_tokens,
        "stop": stop,
        "stop_token_ids": list(turn_ends),
        "skip_special_tokens": False,
    }
    size = prompts_per_batch(num_generations, batch_size)
    try:
        for number in numbers:
            places = range(number * size, min((number + 1) * size, len(prompts)))
            outputs = engine.generate(
                [{"prompt_token_ids": prompts[place]} for place in places],
                [SamplingParams(**sampling, seed=seeds[place]) for place in places],
                use_tqdm=False,
            )
            yield Batch(number, _generated(places, outputs))
    finally:
        del engine
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _generated(places: Sequence[int], outputs: Sequence[Any]) -> list[Generated]:
    """Return the completions of vLLM's outputs, in the order of the prompts' places and of their own numbers."""
    return [
        Generated(place, each.index, each.text, each.finish_reason == "stop", list(each.token_ids))
        for place, output in zip(places, outputs, strict=True)
        for each in sorted(output.outputs, key=lambda completion: completion.index)
    ]


def require_vllm() -> None:
    """Raise `UserError` without the `vllm` package."""
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        raise UserError(
            "sample.backend vllm needs the `vllm` package; install it with `pip install allo-align[vllm]`, or set "
            "sample.backend to hf."
        ) from error


def _engine(folder: Path, **settings: Any) -> Any:
    require_vllm()
    refuse_other_weights(folder)
    from vllm import LLM

    try:
        return LLM(model=str(folder), **settings)
    except ValueError as error:
        raise UserError(
            f"{folder}: vLLM does not load the model ({error}); set sample.backend to hf."
        ) from error


def refuse_other_weights(folder: Path) -> None:
    """Raise `UserError` if vLLM, which looks only at file names, could read other weights than allo does."""
    named = weight_files(folder)
    others = sorted(file.name for file in folder.glob(f"*{SUFFIX}") if file not in named)
    if others:
        raise UserError(
            f"{folder}: vLLM could read {others[0]} in place of {named[0].name}: remove it, or set sample.backend to hf."
        )
