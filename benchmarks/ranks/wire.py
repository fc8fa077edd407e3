"""The bytes that a rank sends in a training step, and its peak memory: selected weights against all weights.

    OMP_NUM_THREADS=1 python -m benchmarks.ranks.wire

`selected` is the trainer's own step of `improve` on 10% of the weights. `all` is DPO on every weight as torch does it, with a second
model as the reference: AdamW under `DistributedDataParallel`, or under FSDP2's `fully_shard`. Each has two micro-batches a step. Sent are
the bytes of the second step that the kernel counts on the process's TCP sockets, whatever sent them; nothing is timed. The peak is `VmHWM`
minus the memory before the model is made, the highest of all ranks.
"""

import argparse
import json
import os
import socket
import struct
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import log_softmax, logsigmoid
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import LlamaConfig, LlamaForCausalLM

from allo.files.provenance import peak_memory, reset_peak_memory, resident_bytes
from allo.models.load import load_model
from allo.models.shards import load_shards
from benchmarks.plan.planned_and_measured import MICRO_BATCHES, STEPS, do_stage
from benchmarks.plan.several_planned_and_measured import MODELS, asked, in_processes, sharded, tiny
from benchmarks.record import RESULTS, Record

MODEL = LlamaConfig(**MODELS["layers"])
PAIRS, LENGTH = 2, 64  # as in `asked`
_BYTES_SENT = 200  # where Linux has `tcpi_bytes_sent` in its `struct tcp_info`


def sent() -> int:
    """Return the bytes that this process has sent through the TCP connections that it has now."""
    total = 0
    for number in map(int, os.listdir("/proc/self/fd")):
        try:
            connection = socket.socket(fileno=os.dup(number))
        except OSError:  # no socket
            continue
        with connection:
            if connection.type == socket.SOCK_STREAM and connection.family != socket.AF_UNIX:
                known = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                total += struct.unpack_from("=Q", known, _BYTES_SENT)[0]
    return total


def selected(load: Callable[..., Any]) -> Callable[[str], None]:
    """Return the trainer's steps on a model that `load` loads."""

    def train(folder: str) -> None:
        recipe = asked(folder)
        model = load(folder, dtype=torch.float32, device="cpu")
        with tempfile.TemporaryDirectory() as out:
            do_stage(recipe, "improve", model, Path(out), rows=None)

    return train


def whole(config: LlamaConfig) -> LlamaForCausalLM:
    """Return a model of which each process has a copy."""
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def copied(config: LlamaConfig) -> nn.Module:
    return (
        DistributedDataParallel(whole(config), init_sync=False)
        if dist.get_world_size() > 1
        else whole(config)
    )


def every(
    make: Callable[[LlamaConfig], nn.Module], other: Callable[[LlamaConfig], nn.Module]
) -> Callable[[str], None]:
    """Return DPO's steps on all weights of a model, with an `other` as the reference."""

    def train(folder: str) -> None:
        config = LlamaConfig.from_pretrained(folder)
        model, reference = make(config), other(config).requires_grad_(False)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        for _ in range(STEPS):
            for number in range(MICRO_BATCHES):
                ids = torch.randint(4, config.vocab_size, (2 * PAIRS, LENGTH))
                waits = number + 1 < MICRO_BATCHES and isinstance(model, DistributedDataParallel)
                with model.no_sync() if waits else nullcontext():
                    with torch.no_grad():
                        before = logps(reference, ids)
                    chosen, rejected = (logps(model, ids) - before).chunk(2)
                    (-logsigmoid(0.1 * (chosen - rejected)).mean() / MICRO_BATCHES).backward()
            optimizer.step()
            optimizer.zero_grad()

    return train


def logps(model: nn.Module, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids).logits[:, :-1]
    return log_softmax(logits, -1).gather(2, ids[:, 1:, None]).sum((1, 2))


WAYS: dict[str, Callable[[str], None]] = {
    "selected, copies": selected(load_model),
    "selected, shards": selected(load_shards),
    "all, DDP": every(copied, whole),
    "all, FSDP2": every(sharded, sharded),
}
ROWS = (
    *(("selected, copies", number) for number in (1, 2)),
    ("selected, shards", 2),
    *(("all, DDP", number) for number in (1, 2)),
    ("all, FSDP2", 2),
)


def measured(way: str, folder: str) -> list[int]:
    """Return the most that a rank sends a step, and the highest peak; every rank calls it."""
    WAYS[way](f"{folder}/tiny")  # what libraries load and keep is not the step's
    at_steps: list[int] = []
    register_optimizer_step_post_hook(lambda *_: at_steps.append(sent()))
    held = resident_bytes()
    reset_peak_memory()
    WAYS[way](folder)
    found = torch.tensor([at_steps[-1] - at_steps[-2], peak_memory() - held])
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return [int(number) for number in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS / "ranks-wire-cpu.json")
    parser.add_argument("--request", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.request:
        dist.init_process_group("gloo")
        found = measured(**options.request)
        if dist.get_rank() == 0:
            print(json.dumps(found))
        dist.destroy_process_group()
        return
    record, rows = Record(options.output, "ranks-wire", device="cpu"), []
    with tempfile.TemporaryDirectory() as folder:
        for config, place in ((MODEL, folder), (tiny(MODEL), f"{folder}/tiny")):
            whole(config).save_pretrained(place)
        for way, processes in ROWS:
            found = in_processes({"way": way, "folder": folder}, processes, module="benchmarks.ranks.wire")
            rows.append(
                {
                    "trained": way,
                    "processes": processes,
                    "sent a step, bytes": found[0],
                    "peak of a rank, bytes": found[1],
                }
            )
            record.write(rows)
            print(json.dumps(rows[-1]), flush=True)


if __name__ == "__main__":
    main()
