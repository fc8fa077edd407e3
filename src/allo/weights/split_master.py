"""An fp32 master weight as a bf16 weight, which is the live one in the model, and a 16-bit residual.

As integers, master = (live << 16) + residual. `live` is the master rounded to bf16, half away from zero; `residual`
is the rest, -32768 ... 32767. Rounding half to even fails: a tie rounded down leaves +32768. A model in fp32 needs no
split: its live weights are the master weights.
"""

import torch
from torch import Tensor


def split(master: Tensor) -> tuple[Tensor, Tensor]:
    """Split fp32 master weights into live weights, bf16, and residuals, int16, of the same shape.

    `join` restores all 2**32 bit patterns. Finite masters from 2**128 - 2**119 on are beyond bf16 and have an
    infinite live weight. Infinities stay. A NaN stays one unless its payload is in the lower half; its live weight is
    then an infinity or -0.0.
    """
    bits = master.contiguous().view(torch.int32)
    residual = bits.to(torch.int16)  # the lower half, as a signed number
    live = bits.sub(residual).bitwise_right_shift_(16).to(torch.int16)
    return live.view(torch.bfloat16), residual


def join(live: Tensor, residual: Tensor) -> Tensor:
    """Join live weights, bf16, and residuals, int16, into master weights, fp32, of the same shape."""
    bits = live.contiguous().view(torch.int16).to(torch.int32)
    return bits.bitwise_left_shift_(16).add_(residual).view(torch.float32)
