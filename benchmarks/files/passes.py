"""CPU seconds that each pass of a selection takes over a gigabyte of each checkpoint, in memory and on one thread.

    python -m benchmarks.files.passes

The pieces are those of `mask_from_checkpoints`, with noise as in `benchmarks.files.selection`. "subtract" and "read" are
all that its `threads` do. A selection takes the others on three threads: reading with the change and the count,
hashing, and dividing.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from allo.weights.fingerprints import Digest
from allo.weights.importance import delta
from allo.weights.key_sample import guess
from allo.weights.selection import PIECE, divide
from benchmarks.record import RESULTS, Record

NUM_PIECES = 32
DENSITY = 0.05


def seconds(run: Callable[[], Any], *, repeats: int) -> float:
    """Return the least CPU seconds of a run."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return min(found)


def passes(folder: Path) -> dict[str, Callable[[], Any]]:
    """Return each pass, over pieces that are made for all."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(2, PIECE, generator=generator) for _ in range(NUM_PIECES)]
    before = [weights.mul(0.02).bfloat16() for weights, _ in drawn]
    after = [
        old.float().add(noise, alpha=5e-5).bfloat16() for old, (_, noise) in zip(before, drawn, strict=True)
    ]
    pairs = list(zip(before, after, strict=True))
    scores = [delta(old, new) for old, new in pairs]
    bounds = guess(scores, k=round(DENSITY * NUM_PIECES * PIECE), num_entries=NUM_PIECES * PIECE)
    path = folder / "pieces"
    path.write_bytes(b"".join(old.view(torch.uint8).numpy().tobytes() for old in before))

    def read() -> None:
        for _ in range(2):
            with path.open("rb") as file:
                for _ in before:
                    file.readinto(torch.empty(2 * PIECE, dtype=torch.uint8).numpy().data)

    return {
        "read both": read,
        "subtract": lambda: [torch.sub(new, old) for old, new in pairs],
        "SHA-256 of the base": lambda: [Digest(old.dtype, old.shape).update(old) for old in before],
        "change in fp32": lambda: [delta(old, new) for old, new in pairs],
        "count of the changed": lambda: [np.count_nonzero(each.view(torch.int32).numpy()) for each in scores],
        "divide by two keys": lambda: [divide("", 0, each, bounds) for each in scores],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU time of a selection's passes.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "files_passes.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = Record(options.output, "files-passes", device="cpu")
    gigabytes = 2 * NUM_PIECES * PIECE / 1e9
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            {"pass": name, "CPU s a GB": seconds(run, repeats=options.repeats) / gigabytes}
            for name, run in passes(Path(folder)).items()
        ]
    record.write(rows)
    print(options.output.read_text())


if __name__ == "__main__":
    main()
