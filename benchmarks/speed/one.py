"""One system's training steps, measured: `python one.py SYSTEM WORK` prints its figures as one line of JSON.

Its own process makes the peak of memory this system's alone.
"""

import ctypes
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from benchmarks.peak import peak_over_present
from benchmarks.speed.baselines import BASELINES
from benchmarks.speed.ours import OURS, SINGLE
from benchmarks.speed.work import LABORATORY, TOY, Work, random_pairs, write_pairs

SYSTEMS = {**OURS, **BASELINES}
OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True)
class Figures:
    """The figures of one system.

    seconds, optimizer_seconds, losses: one per step; losses begins with the warm-up step's, whose seconds are left out.
    setup_seconds: from the loaded policy to the first step: a second model, a mask, a reference pass.
    peak_bytes: beyond the loaded policy, from then to the last step's end.
    stored_bytes: stored to keep the result, in addition to the base.
    num_tokens: of the measured steps' pairs, prompt counted with each completion, no padding.
    num_rows: the measured steps' pairs, or single answers.
    """

    system: str
    seconds: list[float]
    optimizer_seconds: list[float]
    losses: list[float]
    setup_seconds: float
    peak_bytes: int
    stored_bytes: int
    num_tokens: int
    num_weights: int
    num_trained: int
    num_rows: int = 0

    @property
    def seconds_a_step(self) -> float:
        return statistics.mean(self.seconds)


def measure(system: str, work: Work) -> Figures | None:
    """Train one warm-up step and the measured ones. Returns None if the GPU's memory does not suffice."""
    try:
        return _measure(system, work)
    except torch.cuda.OutOfMemoryError:
        return None


def _measure(system: str, work: Work) -> Figures:
    device = torch.device(work.device)
    if work.limit_gb is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(1e9 * work.limit_gb / total)
    policy = work.load_policy()
    num_weights = sum(param.numel() for param in policy.parameters())
    # Memory freed after loading is returned first; a system that reuses it would seem to need none.
    gc.collect()
    if device.type == "cpu":
        ctypes.CDLL(None).malloc_trim(0)
    peak = peak_over_present(device)
    clock = Clock(device)
    with tempfile.TemporaryDirectory() as folder:
        run = (SYSTEMS | SINGLE)[system](work, policy, Path(folder) / "run")
        run.trainer.remove_callback(PrinterCallback)
        run.trainer.add_callback(clock)
        run.trainer.train()
        peak_bytes = peak()
        run.save(Path(folder) / "result")
        stored = sum(file.stat().st_size for file in (Path(folder) / "result").rglob("*.safetensors"))
    rows = trained_rows(run.trainer)[work.pairs_a_step :]
    return Figures(
        system=system,
        seconds=clock.seconds,
        optimizer_seconds=clock.optimizer_seconds[1:],
        losses=[row["loss"] for row in run.trainer.state.log_history if "loss" in row],
        setup_seconds=clock.setup_seconds,
        peak_bytes=peak_bytes,
        stored_bytes=stored,
        num_tokens=sum(map(num_tokens, rows)),
        num_rows=len(rows),
        num_weights=num_weights,
        num_trained=run.num_trained,
    )


def rehearse(system: str, work: Work) -> None:
    """Train a toy first: memory that libraries load and keep for themselves is not the step's."""
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder) / "pairs.jsonl"
        write_pairs(pairs, random_pairs(number=2 * work.pairs_a_step, prompt=8, completion=8))
        measure(system, replace(work, model=TOY, tokenizer=str(LABORATORY), pairs=str(pairs)))


def trained_rows(trainer: Trainer) -> list[Mapping[str, Any]]:
    """Return the rows of token ids, in the order of training."""
    return list(trainer.train_dataset)


def num_tokens(row: Mapping[str, Any]) -> int:
    sides = [row[name] for name in ("chosen_ids", "rejected_ids", "completion_ids") if name in row]
    return sum(len(row["prompt_ids"]) + len(side) for side in sides)


class Clock(TrainerCallback):
    """The times of each step's end, and of the optimizer within it.

    A step lasts from the previous step's end to its own, including fetching and logging. The optimizer's time ends
    after the callbacks added before this one, so it includes our write-back.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._made = self._now()
        self._ends: list[float] = []
        self.setup_seconds = 0.0
        self.optimizer_seconds: list[float] = []

    @property
    def seconds(self) -> list[float]:
        return [end - start for start, end in pairwise(self._ends)]

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if not self._ends:
            self.setup_seconds = self._now() - self._made

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._before = self._now()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.optimizer_seconds.append(self._now() - self._before)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._ends.append(self._now())


if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"
    system, work = sys.argv[1], Work(**json.loads(sys.argv[2]))
    rehearse(system, work)
    figures = measure(system, work)
    print(json.dumps(figures and asdict(figures)))
