"""Bytes that two processes send per optimizer step: the selected weights' gradient, or DDP's dense buckets.

Both train the laboratory's model in CPU processes with gloo, a step of four micro-batches, and count the bytes of
each all-reduce. Ours is counted in `SelectedWeights.sum_gradients_over_ranks`; DDP's by its communication hook, with
`no_sync` until the last micro-batch. The script starts its own processes.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

import allo
from allo.models.load import load_model
from allo.weights import ranks
from allo.weights.param_mask import ParamMask
from allo.weights.selected import SelectedWeights
from benchmarks.record import RESULTS, Record

LABORATORY = Path(allo.__file__).parent / "lab"
MICRO_BATCHES = 4
DENSITY = 0.05


def policy() -> PreTrainedModel:
    return load_model(LABORATORY, dtype=torch.float32, device="cpu")


def backward(model: nn.Module) -> None:
    model(input_ids=torch.arange(1, 17).view(2, 8)).logits.square().mean().backward()


def every_twentieth(model: nn.Module) -> ParamMask:
    named = dict(model.named_parameters())
    step = round(1 / DENSITY)
    indices = {name: torch.arange(0, param.numel(), step, dtype=torch.int32) for name, param in named.items()}
    return ParamMask(indices, shapes={name: tuple(param.shape) for name, param in named.items()})


def ours(dtype: torch.dtype) -> int:
    """Return the bytes of one step, from the summed tensors."""
    sent: list[int] = []
    model = policy()
    selected = SelectedWeights(model, every_twentieth(model))
    all_reduce = dist.all_reduce

    def counted(tensor: torch.Tensor) -> Any:
        sent.append(tensor.nbytes)
        return all_reduce(tensor)

    ranks.dist.all_reduce = counted
    for _ in range(MICRO_BATCHES):
        backward(model)
    selected.sum_gradients_over_ranks(dtype)
    ranks.dist.all_reduce = all_reduce
    selected.release()
    return sum(sent)


def ddp() -> int:
    sent: list[int] = []

    def counted(_: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        sent.append(bucket.buffer().nbytes)
        future = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
        return future.then(lambda done: done.value()[0] / dist.get_world_size())

    wrapped = DistributedDataParallel(policy())
    wrapped.register_comm_hook(None, counted)
    with wrapped.no_sync():
        for _ in range(MICRO_BATCHES - 1):
            backward(wrapped)
    backward(wrapped)
    return sum(sent)


def worker() -> None:
    dist.init_process_group("gloo")
    found = {"fp32": ours(torch.float32), "bf16": ours(torch.bfloat16), "ddp": ddp()}
    if dist.get_rank() == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description="Count the bytes of data parallel training.")
    parser.add_argument("--output", type=Path, default=RESULTS / "wire.json")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker()
        return
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.run(
        [*torchrun, "--module", "benchmarks.speed.wire", "--worker"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    found = json.loads(run.splitlines()[-1])
    weights = sum(param.numel() for param in policy().parameters())
    names = {
        "fp32": "allo, 5% of the weights",
        "bf16": "allo, 5% of the weights, gradient sent in bf16",
        "ddp": "DDP, no_sync until the last micro-batch",
    }
    rows = [
        {
            "system": name,
            "bytes a step": found[key],
            "bytes a weight": found[key] / weights,
            "of DDP's": found[key] / found["ddp"],
        }
        for key, name in names.items()
    ]
    Record(options.output, "wire", device="cpu").write(rows)
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
