"""The gap code of indices: bytes per entry, speed on one core, and its effect on a delta's size.

    python benchmarks/files/gap_code.py

A random mask of each density over tensors of 16 million entries. MB are megabytes of int32 indices, the input of
encoding and the output of decoding. Seconds are CPU seconds of a single thread, medians over repeats in which
encoding and decoding alternate. The delta is the file that `write_delta` makes of the same indices with bf16 values,
divided by the full checkpoint.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from allo.delta import write_delta
from allo.weights import gap_code

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from record import RESULTS, Record

DENSITIES = (0.01, 0.05, 0.1)
SIZE = 1 << 24


def drawn(density: float, num_tensors: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    masks = (generator.random(SIZE, dtype=np.float32) < density for _ in range(num_tensors))
    return {
        f"layers.{number}.weight": np.flatnonzero(mask).astype(np.int32) for number, mask in enumerate(masks)
    }


def megabytes_a_second(tensors: dict[str, np.ndarray], *, repeats: int) -> tuple[float, float]:
    """Measure encoding and decoding, and check that decoding restores the indices."""
    speeds: tuple[list[float], list[float]] = ([], [])
    num = sum(indices.nbytes for indices in tensors.values()) / 1e6
    for _ in range(repeats + 1):
        start = time.thread_time()
        streams = {name: gap_code.encode(indices) for name, indices in tensors.items()}
        between = time.thread_time()
        decoded = {name: gap_code.decode(stream, size=SIZE, where=name) for name, stream in streams.items()}
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
            shapes=dict.fromkeys(indices, (SIZE,)),
            base_hashes=dict.fromkeys(indices, "0" * 64),
            metadata={},
        )
        return path.stat().st_size / (len(tensors) * SIZE * torch.bfloat16.itemsize)


def main() -> None:
    parser = argparse.ArgumentParser(description="Size and speed of the gap code.")
    parser.add_argument("--tensors", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "files_gap_code.json")
    options = parser.parse_args()
    record = Record(options.output, "files-gap-code", device="cpu")
    rows = []
    for density in DENSITIES:
        tensors = drawn(density, options.tensors)
        num = sum(len(indices) for indices in tensors.values())
        coded = sum(len(gap_code.encode(indices)) for indices in tensors.values())
        speeds = megabytes_a_second(tensors, repeats=options.repeats)
        entropy = -np.log2(density) - (1 - density) / density * np.log2(1 - density)
        rows.append([density, num, coded / num, entropy / 8, *speeds, delta_share(tensors)])
    columns = ["density", "entries", "bytes an entry", "entropy, bytes an entry"]
    columns += ["encode, MB/s", "decode, MB/s", "delta / bf16 checkpoint"]
    found = [dict(zip(columns, row, strict=True)) for row in rows]
    record.write(found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
