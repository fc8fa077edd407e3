"""AdamW with one byte per moment, on master weights that are joined, updated and split in chunks."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from allo.weights.eight_bit import BLOCK, EightBitMoments, golden_dither

# A multiple of BLOCK; about eight fp32 temporaries of this size exist at a time.
CHUNK = 1 << 20
assert CHUNK % BLOCK == 0
_ROW = 1 << 12  # entries whose squares are summed at once

# For a flat parameter, yields ranges of at most CHUNK entries, in order and starting at multiples of BLOCK. With each
# come its master weights in fp32; in-place changes to those are kept.
Walk = Callable[[nn.Parameter], Iterator[tuple[slice, Tensor]]]


@torch.no_grad()
def adamw_(
    master: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Take one step of AdamW (Loshchilov and Hutter 2019) in place; all fp32 [n]; `step` counts from 1."""
    beta1, beta2 = betas
    master.mul_(1 - lr * weight_decay)
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    denominator = exp_avg_sq.sqrt().div_(math.sqrt(1 - beta2**step)).add_(eps)
    master.addcdiv_(exp_avg, denominator, value=-lr / (1 - beta1**step))


def norm_in_fp32(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norm of all entries of flat gradients, in fp32 even if they are bf16.

    It is a norm of the norms of short rows: torch sums squares on a CPU one after the other, and over 134 million entries
    loses 1.4% (`torch.nn.utils.get_total_norm` does so within a tensor).
    """
    norms = [
        torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32).to(gradients[0].device)
        for gradient in gradients
        for piece in gradient.split(CHUNK)
        for whole in [len(piece) // _ROW * _ROW]
        for rows in (piece[:whole].view(-1, _ROW), piece[None, whole:])
    ]
    return torch.linalg.vector_norm(torch.cat(norms)) if norms else torch.tensor(0.0)


class LeanAdamW(Optimizer):
    """AdamW with 2.03 bytes of state per entry, on master weights that come from `walk`.

    Only a parameter's gradient is read, not its data. The arguments are torch's.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        walk: Walk,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.walk = walk

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            settings = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
            for flat in group["params"]:
                if flat.grad is not None:
                    self._step(flat, flat.grad, settings)

    def _step(self, flat: nn.Parameter, grad: Tensor, settings: dict[str, Any]) -> None:
        state = self.state[flat]
        if not state:
            state["step"] = 0
            state |= EightBitMoments.zeros(flat.numel(), device=flat.device)._asdict()
        state["step"] += 1
        moments = EightBitMoments(*(state[name] for name in EightBitMoments._fields))
        for entries, master in self.walk(flat):
            part = moments.part(entries.start, entries.stop)
            exp_avg, exp_avg_sq = part.unpack()
            adamw_(master, grad[entries].float(), exp_avg, exp_avg_sq, step=state["step"], **settings)
            dither = golden_dither(entries.start, entries.stop, step=state["step"], device=flat.device)
            part.pack_(exp_avg, exp_avg_sq, dither=dither)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load `state_dict()`. torch's own method would cast the codes to the parameters' dtype."""
        super().load_state_dict({**state_dict, "state": {}})
        flats = [flat for group in self.param_groups for flat in group["params"]]
        for number, saved in state_dict["state"].items():
            flat = flats[number]
            self.state[flat] = {
                name: value.to(flat.device, copy=True) if isinstance(value, Tensor) else value
                for name, value in saved.items()
            }
