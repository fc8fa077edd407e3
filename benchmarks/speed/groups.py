"""Seconds a row when prompts have several rows: groups, single rows, TRL, and the floor of arithmetic.

    python -m benchmarks.speed.groups --model MODEL.gguf --data-folder DATA

Ten samples of each GSM8K and ECQA prompt make five pairs, as in a run of the method. All systems get the same pairs in
the same order, ten per optimizer step as 5 x 2, so a step has two prompts. Forgetting and likelihood train on the
pairs' distinct rejected and chosen answers. Systems alternate within a round; each runs in its own process.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from allo.models.collate import CompletionCollator, PairCollator, grouped
from allo.models.load import load_tokenizer
from allo.models.rows import counted_completions, counted_pairs
from benchmarks.record import RESULTS, Record, Row
from benchmarks.speed.driver import GB, TRL, TRL_PRECOMPUTED, Measure, Rounds, alternate, in_own_process
from benchmarks.speed.floor import products_seconds
from benchmarks.speed.one import Figures
from benchmarks.speed.sampled import add_options, sampled_work
from benchmarks.speed.work import Work

# System -> what it is compared with: TRL's with the same kind of reference, or single rows.
COMPARED = {
    "allo": TRL,
    "allo, prompts": TRL,
    TRL: TRL,
    "allo, precomputed reference": TRL_PRECOMPUTED,
    "allo, prompts, precomputed reference": TRL_PRECOMPUTED,
    TRL_PRECOMPUTED: TRL_PRECOMPUTED,
    "forget": "forget",
    "forget, prompts": "forget",
    "likelihood": "likelihood",
    "likelihood, prompts": "likelihood",
}


def table(found: Rounds, floors: dict[str, float]) -> list[Row]:
    """Return a row per system: medians over the rounds, and ratios of each round's."""
    return [_row(system, found, floors) for system in found]


def _row(system: str, found: Rounds, floors: dict[str, float]) -> Row:
    runs = [run for run in found[system] if run is not None]
    seconds = [_a_row(run) for run in runs]
    other = COMPARED[system]
    ratios = [
        _a_row(one) / _a_row(two)
        for one, two in zip(found[system], found.get(other, ()), strict=False)
        if one is not None and two is not None
    ]
    memory = [
        one.peak_bytes / two.peak_bytes
        for one, two in zip(found[system], found.get(other, ()), strict=False)
        if one is not None and two is not None
    ]
    middle = statistics.median(seconds)
    return {
        "system": system,
        "seconds a row": {"value": middle, "low": min(seconds), "high": max(seconds)},
        "peak over the policy, GB": statistics.median(run.peak_bytes for run in runs) / GB,
        "beside": other,
        "time, of its": statistics.median(ratios) if ratios else None,
        "memory, of its": statistics.median(memory) if memory else None,
        "the floor's share": floors[system] / middle if system in floors else None,
    }


def _a_row(run: Figures) -> float:
    return sum(run.seconds) / run.num_rows


def floors_of(work: Work, systems: Sequence[str]) -> dict[str, float]:
    """Return the seconds a row of the products for tokens that must be read, for each of our systems."""
    policy, tokenizer = work.load_policy(), load_tokenizer(work.tokenizer)
    pairs, found = work.load_pairs(), {}
    for system in systems:
        if system.startswith("TRL"):
            continue
        side = {"forget": "rejected", "likelihood": "chosen"}.get(system.partition(",")[0])
        if side is None:
            rows, _ = counted_pairs(tokenizer, pairs, max_length=work.max_length)
            collate: PairCollator | CompletionCollator = PairCollator(0, shared_prefix=True)
        else:
            distinct = dict.fromkeys((pair["prompt"], pair[side]) for pair in pairs)
            texts = [{"prompt": prompt, "completion": completion} for prompt, completion in distinct]
            rows, _ = counted_completions(tokenizer, texts, max_length=work.max_length)
            collate = CompletionCollator(0, shared_prefix=True)
        size = work.pairs_a_step
        if len(rows) <= size:
            raise SystemExit(
                f"{system}: {len(rows)} rows leave none to measure after the warm-up step; raise --steps"
            )
        parts = [grouped(rows[start : start + size]) for start in range(size, len(rows), size)]
        batches = [collate(part) for part in parts]
        targets = [
            int(batch["completion_mask"][batch.get("distinct", slice(None))].sum()) for batch in batches
        ]
        reference = "precomputed" not in system and side != "chosen"
        total = products_seconds(
            policy,
            num_tokens=sum(map(collate.num_read, parts)),
            num_targets=sum(targets),
            reference=reference,
        )
        found[system] = total / sum(map(len, parts))
    return found


def main(arguments: list[str] | None = None, *, measure: Measure = in_own_process) -> None:
    parser = argparse.ArgumentParser(description="Measure steps whose prompts have several rows.")
    add_options(parser)
    parser.add_argument("--systems", default=";".join(COMPARED), help="names separated by semicolons")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="measured steps; one before them warms up")
    parser.add_argument("--pairs", type=int, default=5, help="of each prompt")
    parser.add_argument("--output", type=Path, default=RESULTS / "speed-groups-cpu.json")
    options = parser.parse_args(arguments)
    systems = [name.strip() for name in options.systems.split(";")]
    if unknown := [name for name in systems if name not in COMPARED]:
        parser.error(f"--systems: {unknown[0]!r} is none of: {'; '.join(COMPARED)}")
    record = Record(options.output, "speed-groups", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        work = sampled_work(options, Path(folder), steps=options.steps, pairs=options.pairs)
        torch.set_num_threads(1)
        floors = floors_of(work, systems)
        alternate(
            systems,
            work,
            rounds=options.rounds,
            measure=measure,
            after_round=lambda found: record.write(table(found, floors)),
        )
    print(options.output.read_text())


if __name__ == "__main__":
    main()
