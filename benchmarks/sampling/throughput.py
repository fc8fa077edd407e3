"""Useful tokens per second of `allo.sampling.generate` and of plain `model.generate`, on the same prompts.

Useful tokens are those of a completion up to and including its EOS. Both sample n completions of each prompt, with
the same number of rows at a time, longest prompts first, and the same temperature and top-p. `model.generate` gets
each prompt n times, left-padded. They alternate, ours first, with new random numbers each round; the ratio is that of
the medians.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from allo.models.load import load_model, load_tokenizer
from allo.models.tokenization import prompt_ids
from allo.sampling.generate import end_ids, generate
from allo.tasks.prompts import PromptSource, read_prompts
from benchmarks.record import RESULTS, Record

TEMPERATURE, TOP_P = 0.7, 0.95


def ours(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    *,
    seed: int,
    options: argparse.Namespace,
) -> int:
    """Return the useful tokens of all completions."""
    batches = generate(
        model,
        tokenizer,
        prompts,
        num_generations=options.num_generations,
        temperature=TEMPERATURE,
        top_p=TOP_P,
        max_new_tokens=options.max_new_tokens,
        stop=[],
        seed=seed,
        batch_size=options.batch_size,
    )
    return sum(sample.num_tokens for batch in batches for sample in batch.samples)


def plain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    *,
    seed: int,
    options: argparse.Namespace,
) -> int:
    """Return the same for transformers; the longest prompts come first here too, since it does not sort."""
    torch.manual_seed(seed)
    eos = end_ids(model, tokenizer)
    config = GenerationConfig(
        do_sample=True,
        temperature=TEMPERATURE,
        top_p=TOP_P,
        top_k=0,
        max_new_tokens=options.max_new_tokens,
        eos_token_id=eos,
        pad_token_id=tokenizer.pad_token_id,
    )
    rows = [
        prompt for prompt in sorted(prompts, key=len, reverse=True) for _ in range(options.num_generations)
    ]
    useful = 0
    for start in range(0, len(rows), options.batch_size):
        batch = rows[start : start + options.batch_size]
        longest = max(map(len, batch))
        input_ids = torch.full((len(batch), longest), config.pad_token_id)
        mask = torch.zeros_like(input_ids)
        for row, ids in enumerate(batch):
            input_ids[row, longest - len(ids) :] = torch.tensor(ids)
            mask[row, longest - len(ids) :] = 1
        out = model.generate(
            input_ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config
        )
        for ids in out[:, longest:].tolist():
            useful += next((i + 1 for i, token in enumerate(ids) if token in eos), len(ids))
    return useful


def rate(run: Callable[..., int], *arguments: Any, device: torch.device, **keywords: Any) -> float:
    """Return useful tokens per second."""
    begin = time.perf_counter()
    useful = run(*arguments, **keywords)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return useful / (time.perf_counter() - begin)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare sampling with transformers' generate.")
    parser.add_argument("--model", required=True, help="folder, hub id or .gguf file")
    parser.add_argument(
        "--data-folder", type=Path, help="rows as FOLDER/<task>/<split>.jsonl[.gz]; else the hub"
    )
    parser.add_argument("--task", default="gsm8k")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--num-generations", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=320)
    parser.add_argument("--max-new-tokens", type=int, default=70)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of a CPU")
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/sampling-TASK-DEVICE.json")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    torch.set_num_threads(options.threads)
    model = load_model(options.model, dtype=torch.bfloat16, device=str(options.device))
    tokenizer = load_tokenizer(options.model)
    found = read_prompts(
        PromptSource(task=options.task, folder=options.data_folder, limit=options.prompts, chat=True)
    )
    prompts = [prompt_ids(tokenizer, prompt.prompt) for prompt in found]

    small = argparse.Namespace(**{**vars(options), "max_new_tokens": 4})
    rates: dict[Callable[..., int], list[float]] = {ours: [], plain: []}
    for run in rates:  # one small run first: loading and compiling at first use is not sampling
        run(model, tokenizer, prompts[:2], seed=0, options=small)
    for seed in range(options.rounds):
        for run, found_rates in rates.items():
            found_rates.append(
                rate(run, model, tokenizer, prompts, seed=seed, options=options, device=options.device)
            )
            print(f"round {seed}, {run.__name__}: {found_rates[-1]:.1f} tokens/s", flush=True)

    medians = {run: statistics.median(found_rates) for run, found_rates in rates.items()}
    row = {
        "device": options.device.type,
        "threads": None if options.device.type == "cuda" else options.threads,
        "prompts": f"{options.prompts} of {options.task} x {options.num_generations}",
        "rows": options.batch_size,
        "new tokens, at most": options.max_new_tokens,
        "rounds": options.rounds,
        "ours, tokens/s": medians[ours],
        "generate, tokens/s": medians[plain],
        "ratio": medians[ours] / medians[plain],
        "ratio, lowest round": min(a / b for a, b in zip(rates[ours], rates[plain], strict=True)),
    }
    name = f"sampling-{options.task}-{options.device.type}.json"
    Record(options.output or RESULTS / name, "sampling", device=options.device.type).write([row])
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
