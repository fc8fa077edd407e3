"""Adam's moments in one byte each, quantized in blocks (Dettmers et al. 2022, arXiv:2110.02861).

Other than there, the two moments are kept as what the update is made of, so that an entry's error does
not grow with its neighbours' gradients:

- rms = sqrt(exp_avg_sq), on a logarithmic scale below the block's largest: 256 levels over 24 octaves,
  6.7 % apart. No entry is rounded to zero, so that no update explodes.
- exp_avg / rms, of order one whatever the gradient's size, as +-(code / 127)**2 of the block's largest.

exp_avg_sq moves by 0.1 % a step and would never leave its level if it were rounded to the nearest. It is
rounded up in as many steps as the way to the next level is long: `dither` says when.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 256
OCTAVES = 24
_STEPS = 255 / OCTAVES  # levels an octave
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
        """Moments that are all zero."""
        codes = [torch.zeros(num_entries, dtype=dtype, device=device) for dtype in (torch.int8, torch.uint8)]
        scales = [torch.zeros(-(-num_entries // BLOCK), device=device) for _ in range(2)]
        return cls(codes[0], scales[0], codes[1], scales[1])

    def part(self, start: int, stop: int) -> "EightBitMoments":
        """Views of entries `start` (a multiple of BLOCK) to `stop` (another, or the end)."""
        entries, blocks = slice(start, stop), slice(start // BLOCK, -(-stop // BLOCK))
        return EightBitMoments(
            self.ratio[entries], self.ratio_scale[blocks], self.rms[entries], self.rms_scale[blocks]
        )

    def unpack(self) -> tuple[Tensor, Tensor]:
        """exp_avg and exp_avg_sq, fp32 [n]."""
        rms = dequantize_positive(self.rms, self.rms_scale)
        return dequantize_signed(self.ratio, self.ratio_scale).mul_(rms), rms.square()

    def pack_(self, exp_avg: Tensor, exp_avg_sq: Tensor, *, dither: Tensor) -> None:
        """Take up moments, fp32 [n], which are overwritten; `dither` [n] is `quantize_positive`'s."""
        rms, rms_scale = quantize_positive(exp_avg_sq.sqrt_(), dither=dither)
        self.rms.copy_(rms)
        self.rms_scale.copy_(rms_scale)
        # Over the rounded rms, by which unpacking multiplies.
        ratio = exp_avg.div_(dequantize_positive(rms, rms_scale).clamp_(min=_TINY))
        for kept, new in zip((self.ratio, self.ratio_scale), quantize_signed(ratio), strict=True):
            kept.copy_(new)


def quantize_signed(values: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 [n] -> codes int8 [n], the blocks' largest magnitudes fp32 [ceil(n / BLOCK)].

    Off by at most 1 / 127 of the block's largest, and for small values by less: by the root's
    nearest code, |error| <= scale * (sqrt(|value| / scale) / 127 + 1 / 254**2).
    """
    blocks = _blocks(values)
    roots = blocks.abs()
    scale = roots.amax(1).clamp_(min=_TINY)
    codes = roots.div_(scale[:, None]).sqrt_().mul_(127).round_().copysign_(blocks).to(torch.int8)
    return codes.view(-1)[: values.numel()], scale


def dequantize_signed(codes: Tensor, scale: Tensor) -> Tensor:
    """Codes int8 [n], scale [ceil(n / BLOCK)] -> fp32 [n]."""
    roots = _blocks(codes.float()).div_(127)
    return roots.mul_(roots.abs()).mul_(scale[:, None]).view(-1)[: codes.numel()]


def quantize_positive(values: Tensor, *, dither: Tensor) -> tuple[Tensor, Tensor]:
    """Non-negative fp32 [n] -> codes uint8 [n], the blocks' largest values fp32 [ceil(n / BLOCK)].

    A value between two levels gets the upper one where its distance from the lower, as a share of the
    logarithmic step, and `dither` [n] in [0, 1] make at least 1: a dither of 0.5 is the nearest level.
    What lies below the lowest level, 2**-OCTAVES of the largest, gets the lowest.
    """
    blocks = _blocks(values)
    scale = blocks.amax(1).clamp_(min=_TINY)
    levels = (blocks / scale[:, None]).log2_().mul_(_STEPS).add_(255)
    codes = levels.add_(_blocks(dither)).floor_().clamp_(0, 255).to(torch.uint8)
    return codes.view(-1)[: values.numel()], scale


def dequantize_positive(codes: Tensor, scale: Tensor) -> Tensor:
    """Codes uint8 [n], scale [ceil(n / BLOCK)] -> fp32 [n]."""
    octaves = _blocks(codes.float()).sub_(255).div_(_STEPS)
    return octaves.exp2_().mul_(scale[:, None]).view(-1)[: codes.numel()]


def golden_dither(start: int, stop: int, *, step: int, device: torch.device) -> Tensor:
    """For entries `start` to `stop` the fractional part of (entry + step) / golden ratio, fp32.

    Over the steps each entry's are spread more evenly over [0, 1] than random numbers, and a resumed
    run needs no generator's state.
    """
    # Integers that wrap around at 2**32, in int32, signed.
    ramp = torch.arange(stop - start, dtype=torch.int32, device=device).mul_(_signed(_GOLDEN))
    return ramp.add_(_signed((start + step) * _GOLDEN)).float().mul_(2.0**-32).add_(0.5)


def _signed(number: int) -> int:
    """The int32 that is congruent modulo 2**32."""
    return (number + 2**31) % 2**32 - 2**31


def _blocks(values: Tensor) -> Tensor:
    """[n] -> [ceil(n / BLOCK), BLOCK], filled up with zeros: a view where nothing is missing."""
    return pad(values, (0, -values.numel() % BLOCK)).view(-1, BLOCK)
