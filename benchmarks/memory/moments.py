"""The accuracy of 8-bit AdamW, ours and bitsandbytes', against fp32, if gradients of several sizes share a block.

All get the same gradients, noise with a drift, whose sizes are e**(spread * normal). In SmolLM2-135M, a random 5% of
a linear layer's entries has a spread of about 0.6, the embedding's 1.5. Reported are the cosine between the changes
of the weights and those in fp32, the ratio of their lengths, and the state's bytes per entry. bitsandbytes is left
out if it is not installed.
"""

import argparse
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from allo.weights.lean_adamw import LeanAdamW
from benchmarks.record import RESULTS, Record

ENTRIES = 1 << 14
STEPS = 300
SPREADS = (0.0, 0.6, 1.5, 2.3)
SETTINGS = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}


def gradients(spread: float) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    size = (torch.randn(ENTRIES, generator=generator) * spread - 12).exp()
    drift = 0.3 * torch.randn(ENTRIES, generator=generator)
    for _ in range(STEPS):
        yield (torch.randn(ENTRIES, generator=generator) + drift) * size


def start() -> Tensor:
    return torch.randn(ENTRIES, generator=torch.Generator().manual_seed(1))


def train(param: nn.Parameter, optimizer: torch.optim.Optimizer, spread: float) -> tuple[Tensor, float]:
    """Train the parameter; return its change and the state's bytes per entry."""
    for gradient in gradients(spread):
        param.grad = gradient
        optimizer.step()
    # Code tables shared by all parameters are not counted as state.
    held = [
        value.nbytes
        for name, value in optimizer.state[param].items()
        if isinstance(value, Tensor) and name not in ("step", "qmap1", "qmap2")
    ]
    return param.detach() - start(), sum(held) / ENTRIES


def lean(param: nn.Parameter) -> torch.optim.Optimizer:
    return LeanAdamW([{"params": [param]}], lambda flat: iter([(slice(0, ENTRIES), flat.data)]), **SETTINGS)


def bitsandbytes(param: nn.Parameter) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit([param], min_8bit_size=0, **SETTINGS)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare 8-bit AdamW with fp32 AdamW.")
    parser.add_argument("--output", type=Path, default=RESULTS / "moments.json")
    options = parser.parse_args()
    systems = {"allo, lean": lean}
    if importlib.util.find_spec("bitsandbytes") is not None:
        systems["bitsandbytes, AdamW8bit"] = bitsandbytes
    record = Record(options.output, "moments", device="cpu")
    rows = []
    for spread in SPREADS:
        param = nn.Parameter(start())
        exact, _ = train(param, torch.optim.AdamW([param], foreach=False, **SETTINGS), spread)
        for name, optimizer in systems.items():
            param = nn.Parameter(start())
            way, state = train(param, optimizer(param), spread)
            cosine = torch.cosine_similarity(way, exact, dim=0).item()
            rows.append(
                {
                    "AdamW": name,
                    "spread": spread,
                    "state, B/entry": state,
                    "cosine with fp32's way": cosine,
                    "length over fp32's": (way.norm() / exact.norm()).item(),
                }
            )
    record.write(rows)
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
