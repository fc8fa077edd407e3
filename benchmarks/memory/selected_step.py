"""Peak memory of a training step on selected weights, beyond the loaded weights, in bytes per weight.

A bf16 stack of linear layers takes two AdamW steps with a reference slot, in a new process. Everything beyond the
weights is counted: indices, master weights, moments, gradients, the slot, one tensor's dense gradient, activations
and scratch. The batch is one row, so that activations are negligible; they are reported. With `--lean` the state is
the lean one. Only state on the device counts: lean slots are in host memory.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import nn

from allo.weights.lean_adamw import LeanAdamW
from allo.weights.param_mask import ParamMask
from allo.weights.selected import SelectedWeights
from benchmarks.peak import peak_over_present
from benchmarks.record import RESULTS, Record

STEPS = 2


def stack(*, layers: int, size: int, device: torch.device) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Linear(size, size, bias=False, device=device, dtype=torch.bfloat16) for _ in range(layers))
    )


def one_in_each_run(model: nn.Module, *, every: int) -> ParamMask:
    """Select a random weight of each run of `every`: density 1 / every, spread over each tensor."""
    shapes = {name: tuple(param.shape) for name, param in model.named_parameters()}
    indices = {}
    for name, param in model.named_parameters():
        starts = torch.arange(0, param.numel() - every + 1, every, dtype=torch.int32)
        indices[name] = starts + torch.randint(every, starts.shape, dtype=torch.int32)
    return ParamMask(indices, shapes=shapes)


def train(model: nn.Sequential, *, every: int, lean: bool) -> tuple[int, int]:
    """Take two steps; return the bytes of indices, master weights, gradient and moments, and those of the slot."""
    selected = SelectedWeights(model, one_in_each_run(model, every=every), slots=("ref",), lean=lean)
    groups = selected.param_groups(weight_decay=0.1)
    optimizer = (
        LeanAdamW(groups, selected.walk, lr=1e-4) if lean else torch.optim.AdamW(groups, lr=1e-4, fused=True)
    )
    device = model[0].weight.device
    row = torch.ones(1, model[0].in_features, device=device, dtype=torch.bfloat16)
    for _ in range(STEPS):
        with torch.no_grad(), selected.swapped("ref"):
            ref = model(row)
        loss = (model(row).float() - ref.float() - 1).square().mean()
        loss.backward()
        selected.clip_grad_norm_(1.0)
        optimizer.step()
        selected.write_back()
        optimizer.zero_grad()
    assert loss.isfinite()
    moments = sum(
        value.nbytes for state in optimizer.state.values() for name, value in state.items() if name != "step"
    )
    slot = sum(bits.nbytes for bits in selected.slot("ref").values())
    return selected.num_bytes + moments - slot, slot


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the memory of a step on selected weights.")
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--every", type=int, default=20, help="select one weight in so many")
    parser.add_argument("--lean", action="store_true", help="one byte a moment, a residual for the master")
    parser.add_argument(
        "--output", type=Path, help="default: benchmarks/results/selected_step-DEVICE[_lean].json"
    )
    options = parser.parse_args()

    torch.manual_seed(0)
    # A small run first: memory that libraries load and keep for themselves is not the step's.
    train(stack(layers=1, size=64, device=options.device), every=options.every, lean=options.lean)
    model = stack(layers=options.layers, size=options.size, device=options.device)
    weights = sum(param.numel() for param in model.parameters())
    peak = peak_over_present(options.device)
    state, slot = train(model, every=options.every, lean=options.lean)
    extra = peak()

    row = {
        "device": options.device.type + ", lean" * options.lean,
        "weights": weights,
        "density": 1 / options.every,
        "state, B/weight": state / weights,
        "slot, B/weight": slot / weights,
        "one dense gradient, B/weight": 2 * options.size**2 / weights,
        "activations, B/weight": 2 * options.size * (options.layers + 1) / weights,
        "measured peak over the weights, B/weight": extra / weights,
    }
    name = f"selected_step-{options.device.type}{'_lean' * options.lean}.json"
    Record(options.output or RESULTS / name, "selected-step", device=options.device.type).write([row])
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
