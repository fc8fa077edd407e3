"""The backward pass of a stack of linear layers that trains fully, or 10% as single entries, rows, or columns.

Each way has its own model with the same weights and gets the same input. The input's gradient is computed too, as in
the middle of a language model. Only `backward` is timed, from no gradient to the complete one. The ways alternate, in
an order that rotates by one each round. A figure is the median over the rounds, a ratio that of two medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from allo.weights.param_mask import ParamMask
from allo.weights.selected import SelectedWeights
from benchmarks.record import RESULTS, Record

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DENSE, ENTRIES = "all weights, torch", "single entries"
Options = argparse.Namespace


def stack(options: Options, dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (
        nn.Linear(options.size, options.size, bias=False, device=options.device, dtype=dtype)
        for _ in range(options.layers)
    )
    return nn.Sequential(*layers)


def entries(size: int, num_lines: int) -> Tensor:
    return torch.randperm(size * size)[: num_lines * size].sort().values


def rows(size: int, num_lines: int) -> Tensor:
    chosen = torch.randperm(size)[:num_lines].sort().values
    return torch.arange(size * size).view(size, size)[chosen].reshape(-1)


def columns(size: int, num_lines: int) -> Tensor:
    chosen = torch.randperm(size)[:num_lines].sort().values
    return torch.arange(size * size).view(size, size)[:, chosen].reshape(-1)


SELECTIONS = {ENTRIES: entries, "rows": rows, "columns": columns}


def select(model: nn.Module, selection: Callable[[int, int], Tensor], options: Options) -> SelectedWeights:
    """Select the same number of weights of each matrix, in any pattern."""
    num_lines = round(options.density * options.size)
    shapes = {name: tuple(param.shape) for name, param in model.named_parameters()}
    indices = {name: selection(options.size, num_lines).int() for name in shapes}
    return SelectedWeights(model, ParamMask(indices, shapes=shapes))


def backward_seconds(model: nn.Module, trained: list[nn.Parameter], x: Tensor) -> float:
    for param in [*trained, x]:
        param.grad = None
    loss = model(x).float().square().mean()
    _wait(x)
    start = time.perf_counter()
    loss.backward()
    _wait(x)
    return time.perf_counter() - start


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def medians(options: Options, dtype: torch.dtype) -> dict[str, float]:
    """Return the median seconds of a backward pass, by way."""
    ways: dict[str, tuple[nn.Module, list[nn.Parameter]]] = {}
    model = stack(options, dtype)
    ways[DENSE] = (model, list(model.parameters()))
    for name, selection in SELECTIONS.items():
        model = stack(options, dtype)
        ways[name] = (model, select(model, selection, options).parameters())
    x = torch.randn(options.tokens, options.size, device=options.device).to(dtype).requires_grad_()
    names = list(ways)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(options.rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            taken = backward_seconds(*ways[name], x)
            if turn:  # the first round warms up
                seconds[name].append(taken)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the backward pass with whole lines selected.")
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/rows_backward-DEVICE.json")
    options = parser.parse_args()

    output = options.output or RESULTS / f"rows_backward-{options.device.type}.json"
    record = Record(output, "rows-backward", device=options.device.type)
    share = round(options.density * options.size) / options.size
    found = []
    for dtype in options.dtypes:
        seconds = medians(options, DTYPES[dtype])
        found += [
            {
                "device": options.device.type,
                "dtype": dtype,
                "trained": name,
                "share trained": 1.0 if name == DENSE else share,
                "backward, s": taken,
                "of single entries": taken / seconds[ENTRIES],
                "of all weights": taken / seconds[DENSE],
            }
            for name, taken in seconds.items()
        ]
    record.write(found)
    for row in found:
        print(*row.values(), sep=" | ")


if __name__ == "__main__":
    main()
