"""Models of 7 and 8 billion weights on one GPU: peak memory and tokens per second of a DPO step.

    python -m benchmarks.speed.gpu_7b

The models have Llama-2-7B's and Llama-3-8B's shapes with random bf16 weights, made on the GPU, so nothing is
downloaded. Rows have 1200 tokens, with 4 pairs per optimizer step as 4 x 1 and activation checkpointing. The target
is a total below 24 GB at 5%. `--tiny --device cpu` runs the same code on a toy.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.record import RESULTS, Record, Row
from benchmarks.speed.driver import GB, Measure, Rounds, alternate, in_own_process, table
from benchmarks.speed.one import OUT_OF_MEMORY
from benchmarks.speed.work import LABORATORY, TOY, Work, random_pairs, write_pairs

LLAMA_2_7B = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
LLAMA_3_8B = LLAMA_2_7B | {
    "vocab_size": 128_256,
    "intermediate_size": 14_336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}
SHAPES = {"Llama-2-7B": LLAMA_2_7B, "Llama-3-8B": LLAMA_3_8B}
SYSTEMS = ["allo", "allo, lean", "allo, rows", "TRL", "TRL + LoRA"]
PROMPT_SHARE = 1 / 3  # of a row's tokens
BYTES_A_WEIGHT = 2


def rows(name: str, found: Rounds) -> list[Row]:
    """Return the table's rows, with the model's name and the total: weights and a step's additional memory."""
    made = []
    for row in table(found):
        runs = [run for run in found[row["system"]] if run is not None]
        total = None
        if runs:
            total = BYTES_A_WEIGHT * runs[0].num_weights / GB + row["peak over the policy, GB"]
        made.append({"model": name, **row, "total peak, GB": total})
    return made


def main(arguments: list[str] | None = None, *, measure: Measure = in_own_process) -> None:
    parser = argparse.ArgumentParser(description="Measure DPO steps of 7B and 8B models on one GPU.")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy shapes and short rows, to try the code")
    parser.add_argument("--shape", choices=[*SHAPES], action="append", help="default: both")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--length", type=int, help="tokens a row; default 1200, 48 for --tiny")
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--limit-gb", type=float, help="as on a GPU of this size: what does not fit runs out")
    parser.add_argument("--output", type=Path, default=RESULTS / "speed-7b.json")
    options = parser.parse_args(arguments)
    length = options.length or (48 if options.tiny else 1200)
    prompt = round(PROMPT_SHARE * length)
    record = Record(options.output, "speed-7b", device=options.device)
    made: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder) / "pairs.jsonl"
        work = Work(
            model=TOY,
            tokenizer=str(LABORATORY),
            pairs=str(pairs),
            device=options.device,
            batch_size=1,
            accumulation=4,
            max_length=length,
            density=options.density,
            checkpointing=True,
            limit_gb=options.limit_gb,
        )
        number = (options.steps + 1) * work.pairs_a_step
        write_pairs(pairs, random_pairs(number=number, prompt=prompt, completion=length - prompt))
        for name in options.shape or SHAPES:
            shape = TOY if options.tiny else SHAPES[name]
            print(f"{name}{' as a toy' if options.tiny else ''}", flush=True)
            found = alternate(SYSTEMS, replace(work, model=shape), rounds=options.rounds, measure=measure)
            made += rows(name, found)
            record.write(made)
    for row in made:
        seconds = row["seconds a step"]
        shown = (
            seconds
            if seconds == OUT_OF_MEMORY
            else f"{row['tokens/s']:.0f} tokens/s, {row['total peak, GB']:.2f} GB"
        )
        print(f"{row['model']}, {row['system']}: {shown}")


if __name__ == "__main__":
    main()
