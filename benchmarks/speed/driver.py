"""Seconds and memory of a DPO step: allo beside TRL, PEFT and the released arithmetic.

    python -m benchmarks.speed.driver --model MODEL.gguf --data-folder DATA

All systems get the same GSM8K pairs in the same order, 8 pairs per optimizer step as 4 x 2. There is no activation
checkpointing unless the row says so. Systems alternate within a round; each runs in its own process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from allo.models.load import load_tokenizer
from benchmarks.record import RESULTS, Record, Row
from benchmarks.speed.one import OUT_OF_MEMORY, SYSTEMS, Figures
from benchmarks.speed.work import Work, gsm8k_pairs, write_pairs

TRL, TRL_PRECOMPUTED = "TRL", "TRL, precomputed reference"
GB, MB = 1e9, 1e6

# One round after the other; None for a system that ran out of memory.
Rounds = Mapping[str, Sequence[Figures | None]]
Measure = Callable[[str, Work], Figures | None]


def in_own_process(system: str, work: Work) -> Figures | None:
    """Run `one.measure` in a new interpreter. If it fails, show its output and raise `CalledProcessError`."""
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed.one", system, json.dumps(asdict(work))],
        capture_output=True,
        text=True,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
    )
    if run.returncode:
        sys.stderr.write(run.stderr)
        run.check_returncode()
    found = json.loads(run.stdout.splitlines()[-1])
    return None if found is None else Figures(**found)


def alternate(
    systems: Sequence[str],
    work: Work,
    *,
    rounds: int,
    measure: Measure,
    after_round: Callable[[Rounds], None] = lambda _: None,
) -> Rounds:
    """Run every system once per round; a system that runs out of memory is not tried again."""
    found: dict[str, list[Figures | None]] = {system: [] for system in systems}
    for number in range(1, rounds + 1):
        for system in systems:
            if found[system] and found[system][-1] is None:
                continue
            figures = measure(system, work)
            found[system].append(figures)
            print(f"round {number} of {rounds}: {system}: {in_short(figures)}", flush=True)
        after_round(found)
    return found


def in_short(figures: Figures | None) -> str:
    if figures is None:
        return OUT_OF_MEMORY
    return (
        f"{figures.seconds_a_step:.2f} s a step, {figures.peak_bytes / GB:.2f} GB over the policy, "
        f"optimizer {statistics.mean(figures.optimizer_seconds):.3f} s, set-up {figures.setup_seconds:.1f} s"
    )


# A run's figure for each column, which shows the median over the rounds.
COLUMNS: dict[str, Callable[[Figures], float]] = {
    "seconds a step": lambda run: run.seconds_a_step,
    "tokens/s": lambda run: run.num_tokens / sum(run.seconds),
    "peak over the policy, GB": lambda run: run.peak_bytes / GB,
    "optimizer step, s": lambda run: statistics.mean(run.optimizer_seconds),
    "before the first step, s": lambda run: run.setup_seconds,
    "stored, MB": lambda run: run.stored_bytes / MB,
    "trained weights": lambda run: run.num_trained,
}
# Figures shown against another system: the column's name, that system, the figure.
COMPARED = {
    "time, of TRL's": (TRL, "seconds a step"),
    "memory, of TRL's": (TRL, "peak over the policy, GB"),
    "time, of precomputed TRL's": (TRL_PRECOMPUTED, "seconds a step"),
}


def table(found: Rounds) -> list[Row]:
    """Return one row per system: medians over the rounds; for seconds also the minimum and maximum."""
    return [{"system": system, **_figures(system, found)} for system in found]


def _figures(system: str, found: Rounds) -> Row:
    runs = [run for run in found[system] if run is not None]
    if not runs:
        return dict.fromkeys([*COLUMNS, *COMPARED]) | {"seconds a step": OUT_OF_MEMORY}
    medians = {name: statistics.median(map(figure, runs)) for name, figure in COLUMNS.items()}
    seconds = [run.seconds_a_step for run in runs]
    interval = {"value": medians["seconds a step"], "low": min(seconds), "high": max(seconds)}
    ratios = {
        name: _ratio(found[system], found.get(other, ()), COLUMNS[column])
        for name, (other, column) in COMPARED.items()
    }
    return medians | {"seconds a step": interval, "trained weights": runs[0].num_trained} | ratios


def _ratio(
    ours: Sequence[Figures | None], theirs: Sequence[Figures | None], figure: Callable[[Figures], float]
) -> float | None:
    """Return the median of each round's ratio; None without a round that both ran."""
    both = [(a, b) for a, b in zip(ours, theirs, strict=False) if a is not None and b is not None]
    return statistics.median(figure(a) / figure(b) for a, b in both) if both else None


def system_names(text: str) -> list[str]:
    """Parse `--systems`: names separated by semicolons, or `all`."""
    names = list(SYSTEMS) if text == "all" else [name.strip() for name in text.split(";")]
    if unknown := [name for name in names if name not in SYSTEMS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of: {'; '.join(SYSTEMS)}")
    return names


def main(arguments: list[str] | None = None, *, measure: Measure = in_own_process) -> None:
    parser = argparse.ArgumentParser(
        description="Measure DPO steps of allo, TRL, PEFT and the released code."
    )
    parser.add_argument("--model", required=True, help="a checkpoint's folder or a .gguf file")
    parser.add_argument("--data-folder", required=True, type=Path, help="the folder that holds gsm8k/")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--systems", type=system_names, default="all", help=f"all, or some of: {'; '.join(SYSTEMS)}"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="measured steps; one before them warms up")
    parser.add_argument("--length", type=int, default=512, help="most tokens of a prompt with its completion")
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/speed-DTYPE-DEVICE.json")
    options = parser.parse_args(arguments)
    table_name = f"speed-{options.dtype}"
    output = options.output or RESULTS / f"{table_name}-{options.device}.json"
    record = Record(output, table_name, device=options.device)
    with tempfile.TemporaryDirectory() as folder:
        work = Work(
            model=options.model,
            tokenizer=options.model,
            pairs=str(Path(folder) / "pairs.jsonl"),
            dtype=options.dtype,
            device=options.device,
            max_length=options.length,
            density=options.density,
        )
        pairs = gsm8k_pairs(
            options.data_folder,
            load_tokenizer(options.model),
            steps=options.steps,
            pairs_a_step=work.pairs_a_step,
            max_length=options.length,
        )
        write_pairs(Path(work.pairs), pairs)
        alternate(
            options.systems,
            work,
            rounds=options.rounds,
            measure=measure,
            after_round=lambda found: record.write(table(found)),
        )
    print(output.read_text())


if __name__ == "__main__":
    main()
