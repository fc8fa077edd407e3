"""Pairs as the method makes them: ten samples of each prompt, several pairs of them."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch

from allo.files.records import Prompt, Verdict
from allo.models.load import load_model, load_tokenizer
from allo.models.tokenization import prompt_ids
from allo.sampling.generate import generate
from allo.tasks.pairing import make_pairs
from allo.tasks.prompts import PromptSource, read_prompts
from benchmarks.speed.work import SEED, Pair, Work, longest, write_pairs

TASKS = ("gsm8k", "ecqa")
NUM_SAMPLES = 10
BATCH_SIZE, ACCUMULATION = 5, 2
NUM_RIGHT = 3
"""Samples of a prompt that stand for right ones: a small model has none for most, and times do not depend on them."""


def sampled_pairs(
    model: str,
    data_folder: Path,
    *,
    num_prompts: int,
    pairs_a_prompt: int,
    max_new_tokens: int,
    max_length: int,
    dtype: str,
    keep: Path,
) -> list[Pair]:
    """Return `pairs_a_prompt` pairs of each prompt, prompts of the tasks by turns.

    Twice as many prompts are sampled, since some have equal samples or long ones. Samples are kept in a file, and read
    from it if it exists.
    """
    found = [read_prompts(PromptSource(task=task, folder=data_folder, limit=num_prompts)) for task in TASKS]
    prompts = [prompt for both in zip(*found, strict=True) for prompt in both]
    if not keep.exists():
        keep.write_text(json.dumps(_sample(model, prompts, max_new_tokens, dtype)), encoding="utf-8")
    samples: dict[str, list[str]] = json.loads(keep.read_text(encoding="utf-8"))
    tokenizer, pairs = load_tokenizer(model), list[Pair]()
    for prompt in prompts:
        verdicts = [_judged(prompt, index, text) for index, text in enumerate(samples[prompt.id])]
        if len(set(samples[prompt.id])) < NUM_SAMPLES:
            continue
        made = make_pairs([prompt], verdicts, max_pairs_per_prompt=pairs_a_prompt, seed=SEED)
        rows = [
            {"prompt": str(prompt.prompt), "chosen": one.chosen, "rejected": one.rejected} for one in made
        ]
        if all(longest(tokenizer, row) <= max_length for row in rows):
            pairs += rows
    assert len(pairs) >= num_prompts * pairs_a_prompt, f"too few prompts with {pairs_a_prompt} pairs"
    return pairs[: num_prompts * pairs_a_prompt]


def _judged(prompt: Prompt, index: int, text: str) -> Verdict:
    right = index < NUM_RIGHT
    return Verdict(prompt.id, index, text, True, right, float(right), None, "place")


def _sample(name: str, prompts: list[Prompt], max_new_tokens: int, dtype: str) -> dict[str, list[str]]:
    """Return the texts of each prompt's samples, by its id."""
    model, tokenizer = load_model(name, dtype=getattr(torch, dtype), device="cpu"), load_tokenizer(name)
    texts: dict[str, list[str]] = {prompt.id: [] for prompt in prompts}
    batches = generate(
        model,
        tokenizer,
        [prompt_ids(tokenizer, prompt.prompt) for prompt in prompts],
        num_generations=NUM_SAMPLES,
        temperature=1.0,
        top_p=1.0,
        max_new_tokens=max_new_tokens,
        stop=[],
        seed=SEED,
        batch_size=16 * NUM_SAMPLES,
    )
    for batch in batches:
        for sample in batch.samples:
            texts[prompts[sample.prompt].id].append(sample.text)
    return texts


def add_options(parser: ArgumentParser) -> None:
    """Add the options that `sampled_work` reads."""
    parser.add_argument("--model", required=True, help="a checkpoint's folder or a .gguf file")
    parser.add_argument(
        "--data-folder", required=True, type=Path, help="the folder that holds gsm8k/ and ecqa/"
    )
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--length", type=int, default=512, help="most tokens of a prompt with its completion")
    parser.add_argument("--new-tokens", type=int, default=200, help="most tokens of a sample")
    parser.add_argument("--samples", type=Path, help="a file that keeps the samples; read if it exists")


def sampled_work(options: Namespace, folder: Path, *, steps: int = 1, pairs: int = 5) -> Work:
    """Write pairs of the model's own samples into a folder, `pairs` of each prompt, for one step more; return work on them."""
    work = Work(
        model=options.model,
        tokenizer=options.model,
        pairs=str(folder / "pairs.jsonl"),
        dtype=options.dtype,
        batch_size=BATCH_SIZE,
        accumulation=ACCUMULATION,
        max_length=options.length,
    )
    found = sampled_pairs(
        options.model,
        options.data_folder,
        num_prompts=-(-(steps + 1) * work.pairs_a_step // pairs),
        pairs_a_prompt=pairs,
        max_new_tokens=options.new_tokens,
        max_length=options.length,
        dtype=options.dtype,
        keep=options.samples or folder / "samples.json",
    )
    write_pairs(Path(work.pairs), found)
    return work
