"""The speed-up of two processes over one in sampling, scoring and training, each process on one core, in turns.

    python -m benchmarks.ranks.speed --work FOLDER --turns 5

The stages' seconds are those of the run's manifest, without loading libraries. Each process is held to one core. On a busy machine the
figures mean nothing.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

STAGES = ("sample", "score", "improve")
RECIPE = Path(__file__).parents[1] / "runs" / "published.yaml"
SIZE = (
    "sft=null",
    "data.limit=600",
    "sample.batch_size=64",
    "score.scorer=privileged",
    "score.batch_size=16",
    "locate.criterion=gradient",
    "improve.training.per_device_train_batch_size=8",
    "improve.training.gradient_accumulation_steps=8",
)


def seconds(out: Path, num_ranks: int) -> dict[str, float]:
    """Return the seconds of each stage of a run in so many processes, on as many cores."""
    import allo

    shutil.rmtree(out, ignore_errors=True)
    model = Path(allo.__file__).parent / "lab"
    settings = [f"out={out}", "name=speed", f"model={model}", "device=cpu", *SIZE]
    sets = [word for setting in settings for word in ("--set", setting)]
    processes = [] if num_ranks == 1 else ["--processes", str(num_ranks)]
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:num_ranks]))
    command = ["taskset", "--cpu-list", cores, sys.executable, "-m", "allo", "run", str(RECIPE), *sets]
    subprocess.run(
        [*command, "--until", "improve", "--quiet", *processes],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    stages = json.loads((out / "speed" / "manifest.json").read_text())["stages"]
    return {name: stages[name]["seconds"] for name in STAGES}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args(arguments)
    found: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for turn in range(options.turns):
        for num_ranks in (1, 2) if turn % 2 == 0 else (2, 1):
            found[num_ranks].append(seconds(options.work / f"{num_ranks}", num_ranks))
            print(num_ranks, found[num_ranks][-1], flush=True)
    for name in STAGES:
        one, two = (statistics.median(turn[name] for turn in found[number]) for number in (1, 2))
        print(f"{name:<8} {one:.1f} s in one process, {two:.1f} s in two: {one / two:.2f} times as fast")


if __name__ == "__main__":
    main()
