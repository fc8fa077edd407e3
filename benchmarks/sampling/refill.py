"""The gain from letting waiting prompts replace finished rows: steps, rows computed per token, seconds.

The same prompts are decoded with and without it, alternately. Completion lengths are made up, so that both do the
same work for any model. A share of completions reaches the limit; the others are exponential around a mean.
"""

import argparse
import json
import statistics
import time
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from allo.models.load import load_model
from allo.models.shared_prompts import SharedPrompts
from allo.sampling.decode import decode
from allo.sampling.generate import WAVES

GOES_ON, ENDS = 5, 2  # token ids


def ends_at(num_rows: int, *, limit: int, mean: float, share_at_limit: float) -> Tensor:
    """Return uniforms [rows, limit]: 1 at the token that ends a row, otherwise 0."""
    torch.manual_seed(0)
    lengths = 1 + torch.empty(num_rows).exponential_(1 / mean).long()
    lengths[torch.rand(num_rows) < share_at_limit] = limit
    uniforms = torch.zeros(num_rows, limit)
    for row, length in enumerate(lengths.tolist()):
        if length < limit:
            uniforms[row, length - 1] = 1.0
    return uniforms


def main() -> None:
    parser = argparse.ArgumentParser(description="Count the steps that refilling saves.")
    parser.add_argument("--model", default=str(files("allo") / "lab"), help="default: the laboratory's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=int, default=80, help="decoded together")
    parser.add_argument("--num-generations", type=int, default=10)
    parser.add_argument("--limit", type=int, default=256, help="new tokens")
    parser.add_argument("--mean", type=float, default=60.0)
    parser.add_argument("--share-at-limit", type=float, default=0.03)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    model = load_model(options.model, dtype=torch.bfloat16, device=options.device)
    num_prompts = WAVES * (options.rows // options.num_generations)
    prompts = [[1] + [20] * 40] * num_prompts
    uniforms = ends_at(
        num_prompts * options.num_generations,
        limit=options.limit,
        mean=options.mean,
        share_at_limit=options.share_at_limit,
    ).to(model.device)
    found: dict[bool, dict[str, Any]] = {True: {"seconds": []}, False: {"seconds": []}}
    for _ in range(options.rounds):
        for refilled, figures in found.items():
            SharedPrompts.takes_more = refilled
            widths: list[int] = []

            def choose(logits: Tensor, ends: Tensor, widths: list[int] = widths) -> Tensor:
                widths.append(len(logits))
                return torch.where(ends > 0, ENDS, GOES_ON)

            begin = time.perf_counter()
            with torch.inference_mode():
                rows = decode(
                    model,
                    prompts,
                    uniforms,
                    max_rows=options.rows,
                    choose=choose,
                    eos=[ENDS],
                    has_stopped=None,
                )
            figures["seconds"].append(time.perf_counter() - begin)
            figures["steps"] = len(widths)
            figures["rows a useful token"] = sum(widths) / sum(map(len, rows))
    for refilled, figures in found.items():
        name = "refilled" if refilled else "in waves"
        print(name, json.dumps({**figures, "seconds": statistics.median(figures["seconds"])}))


if __name__ == "__main__":
    main()
