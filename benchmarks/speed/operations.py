"""A training step's time by kind of operation.

    python -m benchmarks.speed.operations --model MODEL.gguf --data-folder DATA

The pairs are those of `benchmarks.speed.groups`. Each system trains a step unmeasured and one under torch's profiler,
whose own time counts with the operations. An operation's time is without those that it calls.
"""

import argparse
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from benchmarks.record import RESULTS, Record, Row
from benchmarks.speed.one import SYSTEMS
from benchmarks.speed.sampled import add_options, sampled_work
from benchmarks.speed.work import Work

# The first kind whose pattern an operation's name matches.
KINDS = {
    "products with weights": r"aten::(mm|addmm|linear|matmul)$|mkldnn_linear",
    "products of attention": r"aten::(bmm|baddbmm)$",
    "attention kernel": r"attention",
    "softmax": r"softmax|logsumexp",
    "copies": r"aten::(copy_|clone|cat|contiguous|_to_copy|repeat|stack)$",
    "indices": r"index|gather|scatter|embedding|masked|nonzero",
    "zeros": r"zero|fill|empty|full",
    "elementwise and sums": r"aten::(add|sub|mul|div|neg|pow|rsqrt|sqrt|mean|sum|silu|exp|log|where|add_|mul_|div_|lerp|addcmul|addcdiv|_foreach|_fused)",
    "other": r"",
}


class OneStep(TrainerCallback):
    """The operations of the second step."""

    def __init__(self) -> None:
        self.profiler = profile(activities=[ProfilerActivity.CPU])

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 1:
            self.profiler.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 2:
            self.profiler.stop()
            control.should_training_stop = True

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each kind."""
        found = dict.fromkeys(KINDS, 0.0)
        for event in self.profiler.key_averages():
            kind = next(kind for kind, pattern in KINDS.items() if re.search(pattern, event.key))
            found[kind] += event.self_cpu_time_total / 1e6
        return found


def seconds_of(system: str, work: Work) -> dict[str, float]:
    """Return the seconds of each kind in one step of a system."""
    with tempfile.TemporaryDirectory() as folder:
        run = SYSTEMS[system](work, work.load_policy(), Path(folder) / "run")
        run.trainer.remove_callback(PrinterCallback)
        run.trainer.add_callback(step := OneStep())
        run.trainer.train()
    return step.seconds()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Profile a step by kind of operation.")
    add_options(parser)
    parser.add_argument("--systems", default="TRL;allo;allo, prompts", help="names separated by semicolons")
    parser.add_argument("--output", type=Path, default=RESULTS / "speed-operations-cpu.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    record = Record(options.output, "speed-operations", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        work = sampled_work(options, Path(folder))
        found = {name.strip(): seconds_of(name.strip(), work) for name in options.systems.split(";")}
    rows: list[Row] = [
        {"operations": kind} | {f"{system}, s": seconds[kind] for system, seconds in found.items()}
        for kind in KINDS
    ]
    rows.append(
        {"operations": "all"} | {f"{system}, s": sum(seconds.values()) for system, seconds in found.items()}
    )
    record.write(rows)
    print(options.output.read_text())


if __name__ == "__main__":
    main()
