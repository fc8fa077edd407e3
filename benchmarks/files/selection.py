"""The cost of selecting 5% of a checkpoint's changes, against reading and subtracting the two checkpoints once.

    python -m benchmarks.files.selection --folder FOLDER

Two bf16 checkpoints are generated in a new folder below FOLDER and removed at the end. They have layers of
Llama-2-7B's shapes in shards, with tuned = base + small noise whose size varies by row. Rounded to bf16, most changes
are one of a few values. Each run is a new process. The three alternate, first with the files dropped from the page
cache, then with as much of them in it as fits:

- plain: each tensor read by safetensors and subtracted, torch on all cores;
- threads: both files read piece by piece and subtracted by one thread per core, the hardest to match;
- select: `mask_from_checkpoints`, including its fingerprint of the base and the mask's file.

Memory is the process's peak minus the memory after loading torch and allo, and minus the mask itself: its k indices
of 4 bytes, which are the result.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from allo.files.provenance import peak_memory, resident_bytes
from allo.weights.checkpoints import INDEX, Checkpoint
from allo.weights.mask_files import mask_from_checkpoints
from benchmarks.files.page_cache import forget
from benchmarks.record import RESULTS, Record

WIDTH, MLP, VOCABULARY = 4096, 11008, 32000
MIB = 1 << 20
ROOM = 64 * MIB  # allowed beyond the largest tensor


def layer(number: int, *, width: int, mlp: int) -> dict[str, tuple[int, ...]]:
    attention = {f"self_attn.{name}_proj": (width, width) for name in "qkvo"}
    linear = {**attention, "mlp.gate_proj": (mlp, width), "mlp.up_proj": (mlp, width)}
    shapes = {**linear, "mlp.down_proj": (width, mlp), "input_layernorm": (width,)}
    return {f"model.layers.{number}.{name}.weight": shape for name, shape in shapes.items()}


def shards(num_bytes: int, *, scale: int) -> list[dict[str, tuple[int, ...]]]:
    """Return shapes shard by shard: the embedding, then one layer each, up to `num_bytes` in bf16."""
    made: list[dict[str, tuple[int, ...]]] = [
        {"model.embed_tokens.weight": (VOCABULARY // scale, WIDTH // scale)}
    ]
    while sum(2 * math.prod(shape) for shard in made for shape in shard.values()) < num_bytes:
        made.append(layer(len(made) - 1, width=WIDTH // scale, mlp=MLP // scale))
    return made


def generate(folder: Path, num_bytes: int, *, scale: int) -> None:
    """Write `folder`/base and `folder`/tuned."""
    generator = torch.Generator().manual_seed(0)
    weight_map = {}
    for name in ("base", "tuned"):
        (folder / name).mkdir()
    for number, shapes in enumerate(shards(num_bytes, scale=scale)):
        file = f"model-{number:05d}.safetensors"
        base, tuned = {}, {}
        for name, shape in shapes.items():
            weights = torch.randn(shape, generator=generator).mul_(0.02)
            # By row: rounding removes most of the noise in some rows, little in others.
            size = (
                torch.randn(shape[0], *[1] * (len(shape) - 1), generator=generator)
                .mul_(0.5)
                .exp_()
                .mul_(5e-5)
            )
            noise = torch.randn(shape, generator=generator).mul_(size)
            base[name] = weights.bfloat16()
            tuned[name] = base[name].float().add_(noise).bfloat16()
            weight_map[name] = file
        save_file(base, folder / "base" / file)
        save_file(tuned, folder / "tuned" / file)
    for name in ("base", "tuned"):
        (folder / name / INDEX).write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")


def plain(folder: Path) -> None:
    for file in sorted((folder / "base").glob("*.safetensors")):
        with (
            safe_open(file, framework="pt") as base,
            safe_open(folder / "tuned" / file.name, framework="pt") as tuned,
        ):
            for name in list(base.keys()):
                torch.sub(tuned.get_tensor(name), base.get_tensor(name))


def threads(folder: Path) -> None:
    before, after = Checkpoint.open(folder / "base"), Checkpoint.open(folder / "tuned")

    def subtract(name: str) -> None:
        for old, new in zip(before.pieces(name), after.pieces(name), strict=True):
            torch.sub(new, old)

    torch.set_num_threads(1)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(subtract, before.stored))


def select(folder: Path, density: float) -> int:
    mask = mask_from_checkpoints(
        folder / "base", folder / "tuned", density=density, out=folder / "mask.safetensors"
    )
    return 4 * mask.num_selected


def once(what: str, folder: Path, density: float) -> dict[str, float]:
    """Return seconds and peak memory, less loaded libraries and the mask, of one run in this process."""
    loaded = resident_bytes()
    start, mask_bytes = time.perf_counter(), 0
    if what == "select":
        mask_bytes = select(folder, density)
    else:
        {"plain": plain, "threads": threads}[what](folder)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "extra": peak_memory() - loaded - mask_bytes}


def measure(folder: Path, *, density: float, repeats: int, cold: bool) -> dict[str, list[dict[str, float]]]:
    """Run the three alternately, each in a new process, `repeats` times; warm runs start with one that is not
    counted.
    """
    found: dict[str, list[dict[str, float]]] = {"plain": [], "threads": [], "select": []}
    for repeat in range(repeats + (not cold)):
        for what, runs in found.items():
            if cold:
                forget(folder / "base")
                forget(folder / "tuned")
            command = [
                sys.executable,
                "-m",
                "benchmarks.files.selection",
                "--once",
                what,
                "--density",
                str(density),
                "--folder",
                str(folder),
            ]
            run = subprocess.run(command, check=True, capture_output=True, text=True)
            if cold or repeat:
                runs.append(json.loads(run.stdout))
                print("cold" if cold else "warm", what, run.stdout.strip(), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of selection from two checkpoints.")
    parser.add_argument(
        "--folder", type=Path, required=True, help="where the checkpoints may lie for a while"
    )
    parser.add_argument("--gigabytes", type=float, default=8.5, help="of each checkpoint")
    parser.add_argument("--scale", type=int, default=1, help="divides each layer's width, for a quick try")
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "files_selection.json")
    parser.add_argument("--once", choices=["plain", "threads", "select"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(once(options.once, options.folder, options.density)))
        return

    num_bytes = int(options.gigabytes * 1e9)
    free = shutil.disk_usage(options.folder).free
    if free < 2.5 * num_bytes:
        parser.error(
            f"{options.folder} has {free / 1e9:.1f} GB free, {2.5 * options.gigabytes:.1f} are needed"
        )
    record = Record(options.output, "files-selection", device="cpu")
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as made:
        folder = Path(made)
        generate(folder, num_bytes, scale=options.scale)
        stored = Checkpoint.open(folder / "base").stored.values()
        largest = max(entry.num_bytes for entry in stored)
        for cold in (True, False):
            found = measure(folder, density=options.density, repeats=options.repeats, cold=cold)
            seconds = {what: [run["seconds"] for run in runs] for what, runs in found.items()}
            rows.append(
                [
                    "disk" if cold else "page cache",
                    sum(entry.num_bytes for entry in stored) / 1e9,
                    *(statistics.median(seconds[what]) for what in ("plain", "threads", "select")),
                    *(
                        statistics.median(
                            ours / theirs
                            for ours, theirs in zip(seconds["select"], seconds[what], strict=True)
                        )
                        for what in ("plain", "threads")
                    ),
                    max(run["extra"] for run in found["select"]) / MIB,
                    (largest + ROOM) / MIB,
                ]
            )
    columns = [
        "read from",
        "GB each",
        "plain, s",
        "threads, s",
        "select, s",
        "select / plain",
        "select / threads",
    ]
    columns += ["memory beside the mask, MiB", "allowed, MiB"]
    found = [dict(zip(columns, row, strict=True)) for row in rows]
    record.write(found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
