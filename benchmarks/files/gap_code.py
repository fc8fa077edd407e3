"""The gap code of indices: bytes per entry, speed on one core, and its effect on a delta's size.

    python -m benchmarks.files.gap_code

Masks over square tensors of 16 million entries: random ones of three densities, and at 5% one whose density varies by
row (log-normal) and one of whole rows. MB are megabytes of int32 indices, the input of encoding and the output of
decoding. Seconds are CPU seconds of a single thread, medians over repeats in which encoding and decoding alternate.
The delta is the file that `write_delta` makes of the same indices with bf16 values, divided by the full checkpoint.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from allo.delta import write_delta
from allo.weights import gap_code
from benchmarks.record import RESULTS, Record

WIDTH = 1 << 12
SPREAD = 1.2  # of the logarithm of a row's density
RANDOM, BY_ROW, WHOLE_ROWS = "random", "density varies by row", "whole rows"
MASKS = ((RANDOM, 0.01), (RANDOM, 0.05), (RANDOM, 0.1), (BY_ROW, 0.05), (WHOLE_ROWS, 0.05))


def drawn(kind: str, density: float, num_tensors: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)

    def mask() -> np.ndarray:
        of_rows = np.full((WIDTH, 1), density, dtype=np.float32)
        if kind == BY_ROW:
            of_rows *= generator.lognormal(-(SPREAD**2) / 2, SPREAD, (WIDTH, 1)).astype(np.float32)
        drawn_for = (WIDTH, 1 if kind == WHOLE_ROWS else WIDTH)
        return np.broadcast_to(generator.random(drawn_for, dtype=np.float32) < of_rows, (WIDTH, WIDTH))

    return {
        f"layers.{number}.weight": np.flatnonzero(mask()).astype(np.int32) for number in range(num_tensors)
    }


def megabytes_a_second(tensors: dict[str, np.ndarray], *, repeats: int) -> tuple[float, float]:
    """Measure encoding and decoding, and check that decoding restores the indices."""
    speeds: tuple[list[float], list[float]] = ([], [])
    num = sum(indices.nbytes for indices in tensors.values()) / 1e6
    for _ in range(repeats + 1):
        start = time.thread_time()
        streams = {name: gap_code.encode(indices) for name, indices in tensors.items()}
        between = time.thread_time()
        decoded = {
            name: gap_code.decode(stream, size=WIDTH**2, where=name) for name, stream in streams.items()
        }
        end = time.thread_time()
        assert all(np.array_equal(decoded[name], indices) for name, indices in tensors.items())
        speeds[0].append(num / (between - start))
        speeds[1].append(num / (end - between))
    return statistics.median(speeds[0][1:]), statistics.median(speeds[1][1:])


def delta_share(tensors: dict[str, np.ndarray]) -> float:
    """Return bytes of a compact bf16 delta as a share of its whole checkpoint."""
    indices = {name: torch.from_numpy(found) for name, found in tensors.items()}
    values = {name: torch.randn(len(found)).bfloat16() for name, found in indices.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "delta.safetensors"
        write_delta(
            path,
            indices=indices,
            values=values,
            shapes=dict.fromkeys(indices, (WIDTH, WIDTH)),
            base_hashes=dict.fromkeys(indices, "0" * 64),
            metadata={},
        )
        return path.stat().st_size / (len(tensors) * WIDTH**2 * torch.bfloat16.itemsize)


def main() -> None:
    parser = argparse.ArgumentParser(description="Size and speed of the gap code.")
    parser.add_argument("--tensors", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "files_gap_code.json")
    options = parser.parse_args()
    record = Record(options.output, "files-gap-code", device="cpu")
    rows = []
    for kind, density in MASKS:
        tensors = drawn(kind, density, options.tensors)
        num = sum(len(indices) for indices in tensors.values())
        coded = sum(len(gap_code.encode(indices)) for indices in tensors.values())
        speeds = megabytes_a_second(tensors, repeats=options.repeats)
        entropy = -np.log2(density) - (1 - density) / density * np.log2(1 - density)
        rows.append([kind, density, num, coded / num, entropy / 8, *speeds, delta_share(tensors)])
    columns = ["mask", "density", "entries", "bytes an entry", "entropy of random ones"]
    columns += ["encode, MB/s", "decode, MB/s", "delta / bf16 checkpoint"]
    found = [dict(zip(columns, row, strict=True)) for row in rows]
    record.write(found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
