"""A rank's peak that `allo plan --gpus` predicts and the measured one, on 2 and 4 processes with gloo, in bytes.

`copies` and `shards` are the trainer's own step of `improve`, with `load_shards` for the latter. `FSDP2` is torch's `fully_shard` and AdamW on all weights, without a
reference, on so few tokens that activations are next to nothing: it holds the arithmetic of what is gathered to account.
Measured is `VmHWM` minus the memory before the model is made, the highest of all ranks, as in `planned_and_measured`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

from allo.files.provenance import peak_memory, reset_peak_memory, resident_bytes
from allo.plan import plan_stage
from allo.plan.machine import Machine
from allo.plan.several import Geometry, sharded_peak, ways
from allo.recipe import Recipe
from benchmarks.plan.planned_and_measured import LLAMA, MALLOC, do_stage, measure
from benchmarks.plan.planned_and_measured import recipe as recipe_of
from benchmarks.record import RESULTS, Record

# Named by what most of their weights are: layers, or the matrices of a large vocabulary.
MODELS = {
    "layers": LLAMA
    | {"vocab_size": 4000, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8},
    "vocabulary": LLAMA
    | {"vocab_size": 24000, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4},
}
WAYS = ["copies", "shards", "FSDP2"]
TOKENS = 8
MOMENTS_AND_GRADIENT = 12  # bytes a weight, beside itself in fp32


def asked(model: str | Path) -> Recipe:
    """Return the recipe whose `improve` is measured."""
    return recipe_of(str(model), dtype="float32", length=64, pairs=2, device="cpu")


def tiny(config: LlamaConfig) -> LlamaConfig:
    """Return a configuration for a run that makes libraries load, and keep, what they keep for themselves."""
    return LlamaConfig(
        **{**config.to_dict(), "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    )


def measured_fsdp(config: LlamaConfig) -> int:
    """Return a rank's peak in two steps on all weights, from before its shard is made."""
    step(sharded(tiny(config)))
    held = resident_bytes()
    model = sharded(config)
    reset_peak_memory()
    step(model)
    return peak_memory() - held


def measured_shards(recipe: Recipe) -> int:
    """Return a rank's peak in the trainer's steps, from before its shard is read."""
    from allo.models.shards import load_shards

    with tempfile.TemporaryDirectory() as folder:
        do_stage(
            recipe,
            "improve",
            load_shards(f"{recipe.model}/tiny", dtype=torch.float32, device="cpu"),
            Path(folder),
            rows=1,
        )
        held = resident_bytes()
        model = load_shards(recipe.model, dtype=torch.float32, device="cpu")
        reset_peak_memory()
        do_stage(recipe, "improve", model, Path(folder), rows=None)
    return peak_memory() - held


def sharded(config: LlamaConfig) -> LlamaForCausalLM:
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu")
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
    with torch.no_grad():
        for param in model.parameters():
            param.to_local().normal_(0, 0.02)
    return model


def step(model: LlamaForCausalLM) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for _ in range(2):
        ids = torch.randint(4, model.config.vocab_size, (1, TOKENS))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)


def measured(recipe: Recipe, way: str) -> int:
    """Return the highest peak of all ranks; every rank calls it."""
    torch.manual_seed(0)
    if way == "copies":
        peak = measure(recipe, "improve")
    else:
        dist.init_process_group("gloo")
        fsdp = way == "FSDP2"
        peak = measured_fsdp(LlamaConfig.from_pretrained(recipe.model)) if fsdp else measured_shards(recipe)
    highest = torch.tensor(peak)
    dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    return int(highest)


def planned(recipe: Recipe, way: str, processes: int) -> int:
    geometry = Geometry.of(recipe)
    if way != "FSDP2":
        plan = plan_stage(recipe, "improve")
        found = {each.name: each for each in ways(plan, geometry, Machine(processes))}
        return found[f"selected, {way}"].memory + plan.host
    kept = geometry.weights * (geometry.itemsize + MOMENTS_AND_GRADIENT)
    return sharded_peak([{"gradient": 1}], geometry, processes, kept, geometry.weights)


def in_processes(
    request: dict[str, Any], processes: int, module: str = "benchmarks.plan.several_planned_and_measured"
) -> Any:
    """Return what a module prints that is asked for it in so many processes."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    own = ["-m", module, "--request", json.dumps(request)]
    done = subprocess.run(
        [sys.executable, *launch, *own], env=os.environ | MALLOC, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare planned with measured memory of several processes.")
    parser.add_argument("--processes", nargs="*", type=int, default=[2, 4])
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--ways", nargs="*", default=WAYS, choices=WAYS)
    parser.add_argument("--output", type=Path, default=RESULTS / "plan-ranks-cpu.json")
    parser.add_argument("--request", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.request:
        highest = measured(asked(options.request["model"]), options.request["way"])
        if dist.get_rank() == 0:
            print(json.dumps(highest))
        dist.destroy_process_group()
        return
    record, rows = Record(options.output, "plan-ranks", device="cpu"), []
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            LlamaForCausalLM(LlamaConfig(**MODELS[name])).save_pretrained(folder)
            LlamaForCausalLM(tiny(LlamaConfig(**MODELS[name]))).save_pretrained(f"{folder}/tiny")
            for way in options.ways:
                for processes in options.processes:
                    expected = planned(asked(folder), way, processes)
                    found = in_processes({"model": folder, "way": way}, processes)
                    rows.append(
                        {
                            "model": name,
                            "way": way,
                            "processes": processes,
                            "planned, bytes": expected,
                            "measured, bytes": found,
                            "planned / measured": expected / found,
                        }
                    )
                    record.write(rows)
                    print(json.dumps(rows[-1]), flush=True)


if __name__ == "__main__":
    main()
