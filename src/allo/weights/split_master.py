"""An fp32 master as a bf16 weight and a 16-bit residual: the live weight in the model is the master's upper half.

As integers, master = (live << 16) + residual, where `live` is the master rounded to bf16, half away from
zero, and `residual` is what rounding left, -32768 ... 32767. Rounding half to even would not do: a tie that
rounds down leaves +32768. A model in fp32 has nothing to split: there the live weight is the master.
"""

import torch
from torch import Tensor


def split(master: Tensor) -> tuple[Tensor, Tensor]:
    """Masters, fp32 -> live weights, bf16, and residuals, int16, of the same shape.

    `join` gives back all 2**32 bit patterns. Finite masters from 2**128 - 2**119 on, which bf16 cannot
    round to, have an infinite live weight. Infinities stay; a NaN stays one unless its payload lies in the
    lower half, where the live weight is an infinity or -0.0.
    """
    bits = master.contiguous().view(torch.int32)
    residual = bits.to(torch.int16)  # the lower half, as a signed number
    live = bits.sub(residual).bitwise_right_shift_(16).to(torch.int16)
    return live.view(torch.bfloat16), residual


def join(live: Tensor, residual: Tensor) -> Tensor:
    """Live weights, bf16, and residuals, int16 -> masters, fp32, of the same shape."""
    bits = live.contiguous().view(torch.int16).to(torch.int32)
    return bits.bitwise_left_shift_(16).add_(residual).view(torch.float32)
