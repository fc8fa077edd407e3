"""The peak that `allo plan` predicts for each stage and the measured one, in bytes with the weights, in new processes.

For each model and stage, one process plans. Another trains two optimizer steps of two micro-batches (or samples, or
scores) with real weights and rows of the longest allowed length. On a GPU the peak is `max_memory_allocated`; on a
CPU it is `VmHWM` minus the memory before loading the model. There `MALLOC` makes glibc return freed memory, since its
habit of keeping memory is not part of the step. The last column is measured without `MALLOC`.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import allo
from allo.files.provenance import resident_bytes
from allo.files.records import Wrong
from allo.models.load import load_model, read_config
from allo.models.rehearsal import one_word_tokenizer, other_word
from allo.models.start import DTYPES
from allo.models.tokenization import Tokenized
from allo.plan import plan_stage
from allo.recipe import Recipe
from allo.sampling.generate import generate
from allo.tokens.scorers import Context, Scored, confidence
from allo.training.arguments import training_arguments
from allo.training.run import train
from allo.training.trainer import ForgetTrainer, ImproveTrainer
from benchmarks.memory.selected_step import one_in_each_run
from benchmarks.peak import peak_over_present
from benchmarks.record import RESULTS, Record

# Freed memory returns to the system at once, from one arena.
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
STAGES = ("locate", "score", "forget", "improve", "sample")
# A Llama of 349 million random weights; only its configuration is on disk.
LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
}
STEPS, MICRO_BATCHES = 2, 2


def recipe(model: str, *, dtype: str, length: int, pairs: int, device: str) -> Recipe:
    """Return a recipe for rows of `length`, half completion, with micro-batches of `pairs` or 2 * `pairs` single rows."""

    def training(size: int) -> dict[str, Any]:
        return {"per_device_train_batch_size": size, "gradient_accumulation_steps": MICRO_BATCHES}

    return Recipe.model_validate(
        {
            "name": "plan",
            "model": model,
            "dtype": dtype,
            "device": device,
            "max_length": length,
            "data": {"task": "gsm8k"},
            "sample": {"max_new_tokens": length // 2, "batch_size": 16 * pairs, "num_generations": 8},
            "locate": {"training": training(pairs)},
            "score": {"scorer": "confidence", "batch_size": 8 * pairs},
            "forget": {"training": training(2 * pairs)},
            "improve": {"training": training(pairs)},
            "evaluate": {"sets": {"test": {"task": "gsm8k"}}},
        }
    )


def measure(recipe: Recipe, stage: str) -> int:
    """Return a stage's peak bytes with its model's weights, minus the memory of the process before."""
    with tempfile.TemporaryDirectory() as folder:
        # A small run first: memory that libraries load and keep for themselves is not the stage's.
        do_stage(recipe, stage, tiny_model(recipe), Path(folder), rows=1)
        device = torch.device(recipe.device)
        if device.type == "cuda":
            torch.cuda.synchronize()
        held = resident_bytes()
        model = build(recipe)
        weights = sum(param.nbytes for param in model.parameters())
        if device.type == "cpu":
            weights = resident_bytes() - held
        peak = peak_over_present(device)
        do_stage(recipe, stage, model, Path(folder), rows=None)
        return weights + peak()


def tiny_model(recipe: Recipe) -> Any:
    config = LlamaConfig(**LLAMA | {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1})
    model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[recipe.dtype], attn_implementation="sdpa")
    return model.to(recipe.device).eval()


def build(recipe: Recipe) -> Any:
    """Load the model's own weights if it has any, otherwise random ones."""
    folder = Path(recipe.model)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            read_config(folder), dtype=DTYPES[recipe.dtype], attn_implementation="sdpa"
        )
        return model.to(recipe.device).eval()
    return load_model(recipe.model, dtype=DTYPES[recipe.dtype], device=recipe.device)


def do_stage(recipe: Recipe, stage: str, model: Any, folder: Path, *, rows: int | None) -> None:
    """Do the stage's own work on made-up rows; `rows` limits their number."""
    tokenizer = one_word_tokenizer()
    generator = random.Random(0)
    prompt, completion = recipe.max_length // 2, recipe.max_length // 2
    if stage == "sample":
        prompts = [[2] * (recipe.max_length - number) for number in range(rows or 2)]
        settings = recipe.sample.decoding | ({"max_new_tokens": 2} if rows else {})
        if model.config.max_position_embeddings < recipe.max_length + settings["max_new_tokens"]:
            room = model.config.max_position_embeddings - settings["max_new_tokens"]
            prompts = [ids[:room] for ids in prompts]
        count = recipe.sample.batch_size // recipe.sample.num_generations
        list(generate(model, tokenizer, (prompts * count)[: rows or count], seed=0, **settings))
        return
    if stage == "score":
        wrong = Wrong("", "", "", "", True, None, [])
        ids = [
            Tokenized([2] * (prompt - number % 2), [2] * completion)
            for number in range(rows or recipe.score.batch_size)
        ]
        context = Context(model, tokenizer, recipe.max_length, 0)
        confidence([Scored(wrong, tokens) for tokens in ids], context)
        return
    block = getattr(recipe, stage)
    arguments = training_arguments(
        block.training.model_dump() | {"max_steps": STEPS, "save_strategy": "no", "disable_tqdm": True},
        folder=folder,
        seed=0,
        device=torch.device(recipe.device),
        key=stage,
    )
    number = rows or STEPS * arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    texts = [
        {
            "prompt": " ".join(["word"] * (prompt - generator.randrange(2))),
            "completion": " ".join(["word"] * (completion - 1)),
        }
        for _ in range(number)
    ]
    density = 1.0 if stage == "locate" else block.density
    options = {"mask": one_in_each_run(model, every=round(1 / density)), "max_length": recipe.max_length}
    if stage == "forget":
        train(ForgetTrainer(model, arguments, texts, tokenizer, **options))
    else:
        pairs = [
            {
                "prompt": text["prompt"],
                "chosen": text["completion"],
                "rejected": other_word(text["completion"]),
            }
            for text in texts
        ]
        train(ImproveTrainer(model, arguments, pairs, tokenizer, **options))


def in_a_fresh_process(request: dict[str, Any], **environment: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.plan.planned_and_measured", "--request", json.dumps(request)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def answer(request: dict[str, Any]) -> Any:
    asked = recipe(**request["recipe"])
    if request["what"] == "measure":
        return measure(asked, request["stage"])
    planned = plan_stage(asked, request["stage"])
    return planned.total + (planned.host if request["recipe"]["device"] == "cpu" else 0)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare planned with measured memory.")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--smollm2", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="hub id, folder or GGUF file"
    )
    parser.add_argument("--models", nargs="*", help="of laboratory, smollm2, llama-349m; default: all")
    parser.add_argument("--stages", nargs="*", default=STAGES, choices=STAGES)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/plan-DEVICE.json")
    parser.add_argument("--request", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.request:
        print(json.dumps(answer(options.request)))
        return
    with tempfile.TemporaryDirectory() as folder:
        LlamaConfig(**LLAMA, architectures=["LlamaForCausalLM"]).save_pretrained(folder)
        models = {
            "laboratory": {
                "model": str(Path(allo.__file__).parent / "lab"),
                "dtype": "float32",
                "length": 64,
                "pairs": 128,
            },
            "smollm2": {"model": options.smollm2, "dtype": "bfloat16", "length": 256, "pairs": 2},
            "llama-349m": {"model": folder, "dtype": "bfloat16", "length": 256, "pairs": 2},
        }
        output = options.output or RESULTS / f"plan-{options.device}.json"
        record, rows = Record(output, "plan", device=options.device), []
        for model in options.models or models:
            for stage in options.stages:
                request = {"recipe": models[model] | {"device": options.device}, "stage": stage}
                planned = in_a_fresh_process(request | {"what": "plan"})
                measured = in_a_fresh_process(request | {"what": "measure"}, **MALLOC)
                usual = in_a_fresh_process(request | {"what": "measure"}) if options.device == "cpu" else None
                rows.append(
                    {
                        "model": model,
                        "stage": stage,
                        "planned, bytes": planned,
                        "measured, bytes": measured,
                        "planned / measured": planned / measured,
                        "with glibc's defaults, bytes": usual,
                    }
                )
                record.write(rows)
                print(json.dumps(rows[-1]), flush=True)


if __name__ == "__main__":
    main()
