"""Peak memory of each way of locating weights, beyond the loaded model, in bytes per weight.

A bf16 Llama of random weights reads a few short pairs, so that mostly state is counted: master weights, moments,
gradients, slots, sums, deltas, one dense gradient and scratch. Each way runs in a new process.

    python -m benchmarks.memory.locate
    python -m benchmarks.memory.locate --device cuda
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from allo.models.load import load_tokenizer
from allo.models.rows import counted_pairs
from allo.training.arguments import training_arguments
from allo.training.dpo_passes import DpoPasses
from allo.training.run import state_bytes
from allo.training.trainer import ImproveTrainer
from allo.weights.host_sums import HostSums
from allo.weights.param_mask import ParamMask
from benchmarks.peak import peak_over_present
from benchmarks.record import RESULTS, ROOT, Record

WAYS = ("warmup", "warmup_fused", "gradient, fp32 sums", "gradient, bf16 sums")
TOKENIZER = load_tokenizer(ROOT / "src" / "allo" / "lab")
PAIRS = [
    {"prompt": f"{n} + {n} =", "chosen": f" {2 * n}", "rejected": f" {2 * n + 1}"} for n in range(10, 14)
]
BETA = 0.1


def llama(*, layers: int, size: int, device: torch.device) -> PreTrainedModel:
    """Build a model of about 11 * layers * size^2 weights."""
    config = LlamaConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=size,
        intermediate_size=size * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=size // 64,
        tie_word_embeddings=True,
    )
    with torch.device(device):
        return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def locate(way: str, model: PreTrainedModel, folder: Path) -> tuple[int, int]:
    """Make one pass over the pairs; return the bytes of the state, and how many of them are in host memory."""
    shapes = {name: tuple(param.shape) for name, param in model.named_parameters()}
    settings = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "save_strategy": "no"}
    arguments = training_arguments(
        settings | {"report_to": "none"}, folder=folder, seed=0, device=model.device, key="training"
    )
    if way == "warmup":
        trainer = ImproveTrainer(
            model, arguments, PAIRS, TOKENIZER, mask=ParamMask.full(shapes), beta=BETA, keep=1.0
        )
        trainer.train()
        return state_bytes(trainer), 0
    rows, _ = counted_pairs(TOKENIZER, PAIRS, max_length=64)
    passes = DpoPasses(model, rows, arguments, beta=BETA, pad_id=TOKENIZER.pad_token_id)
    if way == "warmup_fused":
        warmup, _ = passes.train_fused()
        return warmup.host_bytes + warmup.device_bytes, warmup.host_bytes
    sums = HostSums(shapes, dtype=torch.bfloat16 if "bf16" in way else torch.float32)
    passes.take_start_gradients(lambda name, _, gradient: sums.add(name, gradient))
    return sums.num_bytes, sums.num_bytes


def measure(way: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a row of the table in this process."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        # A small run first: memory that libraries load and keep for themselves is not state.
        locate(way, llama(layers=1, size=64, device=options.device), Path(folder))
        model = llama(layers=options.layers, size=options.size, device=options.device)
        sizes = [param.numel() for param in model.parameters()]
        peak = peak_over_present(options.device)
        state, host = locate(way, model, Path(folder))
        extra = peak()
    weights = sum(sizes)
    return {
        "device": options.device.type,
        "locate": way,
        "weights": weights,
        "state, B/weight": state / weights,
        "of that in host memory": host / weights,
        "one dense gradient, B/weight": 2 * max(sizes) / weights,
        "measured peak over the weights, B/weight": extra / weights,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the memory of each way of locating weights.")
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--way", choices=WAYS, help="one way in this process, its row to standard output")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/locate-memory-DEVICE.json")
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options)))
        return
    output = options.output or RESULTS / f"locate-memory-{options.device.type}.json"
    record = Record(output, "locate-memory", device=options.device.type)
    rows = []
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.memory.locate", *sys.argv[1:], "--way", way]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows.append(json.loads(found.splitlines()[-1]))
        print(found.splitlines()[-1], flush=True)
        record.write(rows)


if __name__ == "__main__":
    main()
