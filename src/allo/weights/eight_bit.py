"""Adam's moments in one byte each, quantized in blocks (Dettmers et al. 2022, arXiv:2110.02861).

Unlike there, the stored values are the factors of the update, so that large gradients nearby do not increase an
entry's error:

- rms = sqrt(exp_avg_sq), on a logarithmic scale below the block's maximum: 256 levels over 24 octaves,
  6.7% apart. No entry is rounded to zero, so no update explodes.
- exp_avg / rms, of order one for any gradient, as +-(code / 127)**2 of the block's maximum.

exp_avg_sq changes by 0.1% a step: rounded to nearest, it would never leave its level. It is instead rounded up in a
share of the steps that matches its distance to the next level; `dither` decides in which.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 256
OCTAVES = 24
_STEPS = 255 / OCTAVES  # levels per octave
_TINY = torch.finfo(torch.float32).tiny
_GOLDEN = 0x9E3779B9  # 2**32 over the golden ratio


class EightBitMoments(NamedTuple):
    """Both moments of n entries: 2 + 8 / BLOCK bytes an entry."""

    ratio: Tensor  # int8 [n]
    ratio_scale: Tensor  # fp32 [ceil(n / BLOCK)]
    rms: Tensor  # uint8 [n]
    rms_scale: Tensor  # fp32 [ceil(n / BLOCK)]

    @classmethod
    def zeros(cls, num_entries: int, *, device: torch.device) -> "EightBitMoments":
        """Return moments that are all zero."""
        codes = [torch.zeros(num_entries, dtype=dtype, device=device) for dtype in (torch.int8, torch.uint8)]
        scales = [torch.zeros(-(-num_entries // BLOCK), device=device) for _ in range(2)]
        return cls(codes[0], scales[0], codes[1], scales[1])

    def part(self, start: int, stop: int) -> "EightBitMoments":
        """Return views of entries `start` to `stop`, both multiples of BLOCK unless `stop` is the end."""
        entries, blocks = slice(start, stop), slice(start // BLOCK, -(-stop // BLOCK))
        return EightBitMoments(
            self.ratio[entries], self.ratio_scale[blocks], self.rms[entries], self.rms_scale[blocks]
        )

    def unpack(self) -> tuple[Tensor, Tensor]:
        """Return exp_avg and exp_avg_sq, fp32 [n]."""
        rms = dequantize_positive(self.rms, self.rms_scale)
        return dequantize_signed(self.ratio, self.ratio_scale).mul_(rms), rms.square()

    def pack_(self, exp_avg: Tensor, exp_avg_sq: Tensor, *, dither: Tensor) -> None:
        """Store moments, fp32 [n], which are overwritten; `dither` [n] is passed to `quantize_positive`."""
        rms, rms_scale = quantize_positive(exp_avg_sq.sqrt_(), dither=dither)
        self.rms.copy_(rms)
        self.rms_scale.copy_(rms_scale)
        # Divided by the rounded rms, because unpacking multiplies by it.
        ratio = exp_avg.div_(dequantize_positive(rms, rms_scale).clamp_(min=_TINY))
        for kept, new in zip((self.ratio, self.ratio_scale), quantize_signed(ratio), strict=True):
            kept.copy_(new)


def quantize_signed(values: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize fp32 [n] to codes int8 [n] and each block's maximum magnitude fp32 [ceil(n / BLOCK)].

    The error is at most 1 / 127 of the block's maximum and smaller for small values:
    |error| <= scale * (sqrt(|value| / scale) / 127 + 1 / 254**2).
    """
    blocks = _blocks(values)
    roots = blocks.abs()
    scale = roots.amax(1).clamp_(min=_TINY)
    codes = roots.div_(scale[:, None]).sqrt_().mul_(127).round_().copysign_(blocks).to(torch.int8)
    return codes.view(-1)[: values.numel()], scale


def dequantize_signed(codes: Tensor, scale: Tensor) -> Tensor:
    """Restore fp32 [n] from codes int8 [n] and scale [ceil(n / BLOCK)]."""
    roots = _blocks(codes.float()).div_(127)
    return roots.mul_(roots.abs()).mul_(scale[:, None]).view(-1)[: codes.numel()]


def quantize_positive(values: Tensor, *, dither: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize non-negative fp32 [n] to codes uint8 [n] and each block's maximum fp32 [ceil(n / BLOCK)].

    Levels are logarithmic. A value is rounded up if its distance from the level below, in steps, plus `dither` [n] in
    [0, 1] is at least 1. A dither of 0.5 rounds to nearest. Values below the lowest level,
    2**-OCTAVES of the maximum, get the lowest level.
    """
    blocks = _blocks(values)
    scale = blocks.amax(1).clamp_(min=_TINY)
    levels = (blocks / scale[:, None]).log2_().mul_(_STEPS).add_(255)
    codes = levels.add_(_blocks(dither)).floor_().clamp_(0, 255).to(torch.uint8)
    return codes.view(-1)[: values.numel()], scale


def dequantize_positive(codes: Tensor, scale: Tensor) -> Tensor:
    """Restore fp32 [n] from codes uint8 [n] and scale [ceil(n / BLOCK)]."""
    octaves = _blocks(codes.float()).sub_(255).div_(_STEPS)
    return octaves.exp2_().mul_(scale[:, None]).view(-1)[: codes.numel()]


def golden_dither(start: int, stop: int, *, step: int, device: torch.device) -> Tensor:
    """Return the fractional part of (entry + step) / golden ratio for entries `start` to `stop`, fp32.

    Over the steps, each entry's values cover [0, 1] more evenly than random numbers would. A resumed run needs no
    generator state.
    """
    # int32 arithmetic, which wraps around at 2**32.
    ramp = torch.arange(stop - start, dtype=torch.int32, device=device).mul_(_signed(_GOLDEN))
    return ramp.add_(_signed((start + step) * _GOLDEN)).float().mul_(2.0**-32).add_(0.5)


def _signed(number: int) -> int:
    """Return the int32 that is congruent modulo 2**32."""
    return (number + 2**31) % 2**32 - 2**31


def _blocks(values: Tensor) -> Tensor:
    """Reshape [n] to [ceil(n / BLOCK), BLOCK], padded with zeros; a view if no padding is needed."""
    return pad(values, (0, -values.numel() % BLOCK)).view(-1, BLOCK)
