"""Attention over a prompt and several completions on a CPU, by three ways: which is fastest, forward and backward.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.attention

Heads and sizes are SmolLM2-135M's, with keys repeated as the models do. `products` is a layer's other products, for
comparison. Ways alternate; times are the least of the rounds, in CPU milliseconds of one layer and row.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from allo.models.block_attention import BlockMask, mask_of
from benchmarks.record import RESULTS, Record, Row

HEADS, SIZE, HIDDEN = 9, 64, 576
LAYER = [(576, 576), (576, 576), (576, 192), (576, 192), (576, 1536), (576, 1536), (1536, 576)]
# Tokens of the prompt and of each completion, and the number of completions.
SHAPES = [(100, 100, 2), (100, 100, 8), (500, 100, 8), (60, 200, 8)]


def by_kernel(query: Tensor, key: Tensor, value: Tensor, segments: Tensor) -> Tensor:
    mask = mask_of(segments, query.dtype)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask)


def by_products(query: Tensor, key: Tensor, value: Tensor, segments: Tensor) -> Tensor:
    mask = mask_of(segments, query.dtype)
    return (query * SIZE**-0.5 @ key.mT + mask).softmax(-1) @ value


def by_blocks(query: Tensor, key: Tensor, value: Tensor, segments: Tensor) -> Tensor:
    mask = BlockMask.of(segments, query.dtype)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask)


WAYS: dict[str, Callable[..., Tensor]] = {
    "kernel with a mask": by_kernel,
    "products": by_products,
    "blocks": by_blocks,
}


def measured(prompt: int, completion: int, number: int, dtype: torch.dtype, rounds: int) -> list[Row]:
    """Return a row for each way, and one for the layer's other products."""
    lengths = torch.tensor([prompt, *[completion] * number])
    segments = torch.arange(number + 1, dtype=torch.int16).repeat_interleave(lengths)[None]
    torch.manual_seed(0)
    total = int(lengths.sum())
    drawn = [torch.randn(1, total, HEADS, SIZE, dtype=dtype).transpose(1, 2) for _ in range(4)]
    given, slope = [states.requires_grad_() for states in drawn[:3]], drawn[3]
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, function in WAYS.items():
            begin = time.process_time()
            out = function(*given, segments)
            middle = time.process_time()
            torch.autograd.grad(out, given, slope)
            times[way].append((middle - begin, time.process_time() - middle))
    weights = [torch.randn(shape, dtype=dtype) for shape in LAYER]
    others = []
    for _ in range(rounds):
        begin = time.process_time()
        for weight in weights:
            torch.randn(1, len(weight), dtype=dtype).expand(total, -1).contiguous() @ weight
        others.append(time.process_time() - begin)
    shape = f"{prompt} + {number} x {completion}"
    rows: list[Row] = []
    for way, found in times.items():
        forward, backward = (1e3 * min(part) for part in zip(*found, strict=True))
        rows.append({"tokens": shape, "way": way, "forward, ms": forward, "backward, ms": backward})
    least = 1e3 * min(others)
    rows.append(
        {"tokens": shape, "way": "the layer's other products", "forward, ms": least, "backward, ms": None}
    )
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure attention over a prompt and its completions.")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=RESULTS / "speed-attention-cpu.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    record, rows = Record(options.output, "speed-attention", device="cpu"), []
    for shape in SHAPES:
        rows += measured(*shape, getattr(torch, options.dtype), options.rounds)
        record.write(rows)
    print(options.output.read_text())


if __name__ == "__main__":
    main()
